"""The solvers against diffusers' own classes, step by step; needs PyTorch (`make parity`)."""

import numpy as np
import pytest

from wanjax import solvers

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

CLASSES = {
    "unipc": lambda shift: diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    ),
    "dpm++": lambda shift: diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    ),
    "euler": lambda shift: diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
}


def bend(x, t):
    return np.tanh(1.3 * x + np.float32(t) / np.float32(700.0)) + np.float32(0.3) * x


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 40])
@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
@pytest.mark.parametrize("name", solvers.NAMES)
def test_grid_and_trajectory_of_diffusers(name, shift, steps):
    reference = CLASSES[name](shift)
    reference.set_timesteps(steps)
    solver = solvers.make(name, steps=steps, shift=shift, grid="diffusers")
    np.testing.assert_allclose(reference.sigmas.numpy(), solver.sigmas, atol=2e-7)
    np.testing.assert_allclose(reference.timesteps.numpy(), solver.timesteps, rtol=2e-7)
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4, 16)).astype(np.float32)
    expected, state = torch.from_numpy(x), solver.init(x)
    for i, t in enumerate(reference.timesteps):
        v = torch.from_numpy(bend(expected.numpy(), solver.timesteps[i]))
        expected = reference.step(v, t, expected, return_dict=False)[0]
        x, state = solver.step(state, x, bend(x, solver.timesteps[i]), i)
    np.testing.assert_allclose(x, expected.numpy(), atol=1e-5)


def test_the_two_unipc_grids_are_not_the_same():
    ours, theirs = (solvers.make("unipc", steps=40, shift=12.0, grid=g).sigmas for g in ("official", "diffusers"))
    assert 1e-3 < np.abs(ours - theirs).max() < 1e-2
