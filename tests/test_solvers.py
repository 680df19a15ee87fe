"""Statements about the solvers: grids, order of convergence, agreement with the reference and with a transcription."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.parity import solvers_case
from wanjax import solvers
from wanjax.sample_config import SampleConfig

GRIDS = [(name, grid) for name in solvers.NAMES for grid in solvers.GRIDS]


def run(solver, x, field):
    state = solver.init(x)
    for i, t in enumerate(solver.timesteps):
        x, state = solver.step(state, x, field(x, solver.sigmas[i], t), i)
    return x


def start(seed=0, shape=(2, 3, 4)):
    return np.random.default_rng(seed).standard_normal(shape)


def bend(x, sigma, t):
    """A velocity that is nothing special: nonlinear in x, depending on the timestep the network would see."""
    return np.tanh(1.3 * x + t / 700.0) + 0.3 * x


# -- grids ------------------------------------------------------------------------------------------------


def test_the_official_unipc_grid_starts_just_below_one():
    assert solvers.make("unipc", steps=40, shift=12.0).sigmas[0] == pytest.approx(0.9999166, abs=5e-8)
    assert solvers.make("unipc", steps=40, shift=12.0).timesteps[0] == 999


@pytest.mark.parametrize("name", ["euler", "dpm++"])
def test_the_other_official_grids_start_at_exactly_one(name):
    solver = solvers.make(name, steps=40, shift=12.0)
    assert solver.sigmas[0] == 1.0 and solver.timesteps[0] == 1000


@pytest.mark.parametrize("name,grid", GRIDS)
def test_every_grid_descends_to_zero(name, grid):
    for steps in (1, 2, 7, 40):
        solver = solvers.make(name, steps=steps, shift=5.0, grid=grid)
        assert solver.sigmas.shape == (steps + 1,) and solver.timesteps.shape == (steps,)
        assert solver.sigmas.dtype == np.float64 and solver.sigmas[-1] == 0.0
        assert (np.diff(solver.sigmas) < 0).all() and (np.diff(solver.timesteps) < 0).all()


@pytest.mark.parametrize("name", solvers.NAMES)
def test_the_high_noise_expert_takes_17_of_40_steps_at_shift_5_and_26_at_shift_12(name):
    for shift, share in ((5.0, 17), (12.0, 26)):
        assert (solvers.make(name, steps=40, shift=shift).timesteps >= 875).sum() == share


@pytest.mark.parametrize("name", solvers.NAMES)
def test_official_timesteps_are_truncated_in_float64(name):
    for shift in (3.0, 5.0, 12.0):
        for steps in (8, 40, 50):
            solver = solvers.make(name, steps=steps, shift=shift)
            assert np.issubdtype(solver.timesteps.dtype, np.integer)
            top = 0.9990000128746033 if name == "unipc" else 1.0
            u = np.linspace(top, 0, steps + 1, dtype=np.float64)[:-1]
            np.testing.assert_array_equal(solver.timesteps, (shift * u / (1 + (shift - 1) * u) * 1000).astype(np.int64))


def test_a_step_at_the_expert_boundary_is_decided_in_float64():
    """Shift 5, 60 steps: step 25 is the low-noise expert's; float32 arithmetic would give it to the other."""
    assert solvers.make("dpm++", steps=60, shift=5.0).timesteps[25] == 874
    u = np.linspace(1, 0, 61, dtype=np.float32)[:-1]
    assert (5 * u / (1 + 4 * u) * 1000).astype(np.int64)[25] == 875


@pytest.mark.parametrize("name", solvers.NAMES)
def test_the_distilled_grid_of_four_steps_at_shift_5(name):
    solver = solvers.make(name, steps=4, shift=5.0, grid="distilled")
    np.testing.assert_allclose(solver.timesteps, [1000, 937.5, 2500 / 3, 625], rtol=1e-15)
    np.testing.assert_allclose(solver.sigmas, [1, 0.9375, 5 / 6, 0.625, 0], rtol=1e-15)


@pytest.mark.parametrize("name", solvers.NAMES)
def test_each_expert_takes_two_of_four_distilled_steps(name):
    settings = SampleConfig(solver=name, grid="distilled", steps=4, shift=5.0, guidance_high=1.0, guidance_low=1.0)
    assert settings.expert_steps == {"high": 2, "low": 2}


# -- the numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", solvers_case.NAMES)
def test_trajectories_are_those_of_the_wan_reference(name):
    """Every step of 15 runs, ends included; recorded by tests/parity/solvers_record.py."""
    recorded = load_file(solvers_case.RECORDED)
    for shift, steps in solvers_case.COMBINATIONS:
        solver, key = solvers.make(name, steps=steps, shift=shift), solvers_case.key(name, shift, steps)
        expected = recorded[key]
        np.testing.assert_array_equal(solver.timesteps, expected[:, 0], err_msg=key)
        got = np.stack(list(solvers_case.trajectory(solver, solvers_case.start())))
        np.testing.assert_allclose(got, expected[:, 1:], atol=1e-5, rtol=0, err_msg=key)
        assert np.ptp(expected[:, 1:], axis=0).min() > 0.1  # it moves by far more than the tolerance


def transcribed_dpm(sigmas, timesteps, x, field):
    """DPM-Solver++ 2M as the paper's algorithm 2 reads, with the reference's orders."""
    alpha, lam, before = 1 - sigmas, np.log((1 - sigmas[1:-1]) / sigmas[1:-1]), None
    lam, steps = np.concatenate([[-np.inf], lam, [np.inf]]), len(timesteps)
    for i in range(steps):
        m = x - sigmas[i] * field(x, sigmas[i], timesteps[i])
        decay = np.exp(lam[i] - lam[i + 1])
        if i in (0, 1, steps - 1):
            d = m
        else:
            r = (lam[i] - lam[i - 1]) / (lam[i + 1] - lam[i])
            d = (1 + 1 / (2 * r)) * m - 1 / (2 * r) * before
        x, before = sigmas[i + 1] / sigmas[i] * x - alpha[i + 1] * (decay - 1) * d, m
    return x


def transcribed_unipc(sigmas, timesteps, x, field):
    """UniPC-2 (bh2): predictor and corrector as their own updates, the corrector's weights from the 2×2 system."""
    with np.errstate(divide="ignore"):  # −∞ where the first σ is 1
        lam, steps = np.log(1 - sigmas[:-1]) - np.log(sigmas[:-1]), len(timesteps)
    past, last = [], x
    for i in range(steps):
        m = x - sigmas[i] * field(x, sigmas[i], timesteps[i])  # from the sample that is not yet corrected
        if i:
            h = lam[i] - lam[i - 1]
            phi1 = np.exp(-h) - 1
            phi2 = phi1 / -h - 1
            phi3 = phi2 / -h - 0.5
            update = 0.5 * (m - past[-1])
            if i > 1:
                r = (lam[i - 2] - lam[i - 1]) / h
                # ρ₁ + ρ₂ = φ₂/B and r ρ₁ + ρ₂ = 2 φ₃/B
                rho1 = (phi2 / phi1 - 2 * phi3 / phi1) / (1 - r)
                rho2 = phi2 / phi1 - rho1
                update = rho1 * (past[-2] - past[-1]) / r + rho2 * (m - past[-1])
            x = sigmas[i] / sigmas[i - 1] * last - (1 - sigmas[i]) * phi1 * (past[-1] + update)
        past.append(m)
        last = x
        if i == steps - 1:
            return m
        h = lam[i + 1] - lam[i]
        phi1 = np.exp(-h) - 1
        update = 0.0 if i == 0 else 0.5 * (past[-2] - m) / ((lam[i - 1] - lam[i]) / h)
        x = sigmas[i + 1] / sigmas[i] * x - (1 - sigmas[i + 1]) * phi1 * (m + update)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 40])
@pytest.mark.parametrize("name,transcription", [("unipc", transcribed_unipc), ("dpm++", transcribed_dpm)])
@pytest.mark.parametrize("grid", ["official", "distilled"])
def test_trajectories_agree_with_a_transcription_in_float64(grid, name, transcription, steps):
    for shift in (3.0, 12.0):
        solver = solvers.make(name, steps=steps, shift=shift, grid=grid)
        expected = transcription(solver.sigmas, solver.timesteps, start(), bend)
        np.testing.assert_allclose(run(solver, start(), bend), expected, atol=1e-11)


@pytest.mark.parametrize("grid", ["official", "distilled"])
def test_euler_is_the_straight_step(grid):
    solver, x = solvers.make("euler", steps=5, shift=3.0, grid=grid), start()
    expected = x
    for i, t in enumerate(solver.timesteps):
        expected = expected + (solver.sigmas[i + 1] - solver.sigmas[i]) * bend(expected, None, t)
    np.testing.assert_allclose(run(solver, x, bend), expected, atol=1e-13)


@pytest.mark.parametrize("name,order", [("euler", 1), ("dpm++", 2), ("unipc", 2)])
def test_order_of_convergence_on_a_known_ode(name, order):
    """The exact velocity field of Gaussian data of mean μ and deviation s has the solution
    x(σ) = (1−σ) μ + q(σ)/q(σ₀) (x(σ₀) − (1−σ₀) μ), q² = (1−σ)² s² + σ²."""
    mean, deviation = 0.7, 0.5

    def spread(sigma):
        return np.sqrt(((1 - sigma) * deviation) ** 2 + sigma**2)

    def field(x, sigma, t):
        return (sigma - (1 - sigma) * deviation**2) / spread(sigma) ** 2 * (x - (1 - sigma) * mean) - mean

    def error(steps):
        solver, first = solvers.make(name, steps=steps, shift=1.0), start()
        s = solver.sigmas[0]
        exact = mean + spread(0.0) / spread(s) * (first - (1 - s) * mean)
        return np.abs(run(solver, first, field) - exact).max()

    coarse, fine = error(80), error(320)
    assert order - 0.25 < np.log(coarse / fine) / np.log(4) < order + 0.75
    assert fine < (2e-2 if order == 1 else 1e-3)


@pytest.mark.parametrize("name,grid", GRIDS)
def test_data_of_one_point_is_hit_exactly(name, grid):
    """Straight paths to one clip: every solver must end on it, whatever the number of steps."""
    x, target = start(), start(1)
    for steps in (1, 2, 3, 20):
        got = run(solvers.make(name, steps=steps, shift=12.0, grid=grid), x, lambda x, sigma, t: (x - target) / sigma)
        np.testing.assert_allclose(got, target, atol=1e-12)


@pytest.mark.parametrize("name,grid", GRIDS)
def test_the_ends_of_the_grid_give_finite_tables(name, grid):
    for steps in (1, 2, 3, 40):
        for shift in (1.0, 12.0):
            solver = solvers.make(name, steps=steps, shift=shift, grid=grid)
            assert np.isfinite(solver.correct).all() and np.isfinite(solver.predict).all()
            np.testing.assert_allclose(solver.predict[-1], [0, 1, 0], atol=1e-15)


# -- where it runs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name,grid", [(name, grid) for name, grid in GRIDS if grid != "diffusers"])
def test_a_compiled_loop_agrees_with_numpy(name, grid):
    solver = solvers.make(name, steps=12, shift=5.0, grid=grid)
    x = start().astype(np.float32)
    timesteps = jnp.asarray(solver.timesteps, jnp.float32)

    @jax.jit
    def sample(x):
        def body(i, carry):
            x, state = carry
            velocity = jnp.tanh(1.3 * x + timesteps[i] / 700.0) + 0.3 * x
            return solver.step(state, x, velocity, i)

        return jax.lax.fori_loop(0, 12, body, (x, solver.init(x)))[0]

    got, expected = np.asarray(sample(x)), run(solver, x, lambda x, s, t: bend(x, s, np.float32(t)))
    assert got.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=5e-6)
    np.testing.assert_allclose(expected, run(solver, start(), bend), atol=5e-6)
    mixed = run(solver, x, lambda x, s, t: jnp.asarray(bend(np.asarray(x), s, np.float32(t))))
    np.testing.assert_allclose(mixed, expected, atol=5e-6)


def test_half_precision_latents_keep_their_type_and_a_float32_state():
    solver = solvers.make("unipc", steps=4, shift=5.0)
    x = jnp.ones((1, 2), jnp.bfloat16)
    after, state = solver.step(solver.init(x), x, x, 0)
    assert after.dtype == jnp.bfloat16 and {leaf.dtype for leaf in state} == {jnp.dtype("float32")}


# -- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change,message",
    [
        ({"name": "heun"}, "solver 'heun': expected one of euler, unipc"),
        ({"grid": "karras"}, "grid 'karras'"),
        ({"steps": 0}, "steps = 0"),
        ({"steps": 2.5}, "steps = 2.5"),
        ({"shift": 0.0}, "shift = 0.0"),
        ({"shift": float("nan")}, "shift = nan"),
    ],
)
def test_what_cannot_work_is_named(change, message):
    arguments = {"name": "unipc", "steps": 4, "shift": 5.0} | change
    with pytest.raises(ValueError, match=message):
        solvers.make(arguments.pop("name"), **arguments)


def test_a_step_that_is_not_on_the_grid_is_refused():
    solver, x = solvers.make("euler", steps=4, shift=5.0), start()
    for i in (-1, 4):
        with pytest.raises(IndexError, match="steps 0..3"):
            solver.step(solver.init(x), x, x, i)
