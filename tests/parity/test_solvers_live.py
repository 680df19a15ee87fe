"""The solvers against diffusers' own classes, step by step; needs PyTorch (`make parity`)."""

import numpy as np
import pytest

from tests.parity import solvers_case
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


@pytest.mark.parametrize("shift,steps", [*solvers_case.COMBINATIONS, (1.0, 1), (3.0, 1), (12.0, 1), (5.0, 2), (5.0, 3)])
@pytest.mark.parametrize("name", solvers.NAMES)
def test_grid_and_trajectory_of_diffusers(name, shift, steps):
    reference = CLASSES[name](shift)
    reference.set_timesteps(steps)
    solver = solvers.make(name, steps=steps, shift=shift, grid="diffusers")
    np.testing.assert_allclose(reference.sigmas.numpy(), solver.sigmas, atol=2e-7)
    np.testing.assert_allclose(reference.timesteps.numpy(), solver.timesteps, rtol=2e-7)
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4, 16)).astype(np.float32)
    expected = torch.from_numpy(x)
    for i, (t, got) in enumerate(zip(reference.timesteps, solvers_case.trajectory(solver, x), strict=True)):
        v = torch.from_numpy(solvers_case.velocity(expected.numpy(), solver.timesteps[i]))
        expected = reference.step(v, t, expected, return_dict=False)[0]
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-5, rtol=0, err_msg=f"after step {i}")


def test_the_two_unipc_grids_are_not_the_same():
    ours, theirs = (solvers.make("unipc", steps=40, shift=12.0, grid=g).sigmas for g in ("official", "diffusers"))
    assert 1e-3 < np.abs(ours - theirs).max() < 1e-2
