"""The transformer against diffusers on this machine, at other sizes than the recorded case too."""

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is installed by make parity")

from tests.parity import dit, dit_case
from tests.parity.loop_case import CASES
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows import export_tensors
from wanjax.models.rows.dit import dit_rows

CONFIGS = {
    "recorded": dit_case.CONFIG,
    "wider, as many channels in as out": DiTConfig(width=96, heads=3, layers=3, ffn=200, text_dim=24),
    "image to video": DiTConfig(width=48, heads=4, layers=2, ffn=64, in_channels=36, text_dim=8, remat="full"),
    **{name: CASES[name].model for name in ("Wan2.1 1.3B", "TI2V-5B, from an image")},
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("per_token", [False, True], ids=["per clip", "per token"])
def test_velocity_within_2e_5_and_gradients_within_1e_5(name, per_token):
    config = CONFIGS[name]
    inputs = dit_case.inputs(config, per_token=per_token)
    expected = dit.results(config, inputs)
    assert 0.3 < np.std(expected["velocity"]) < 3

    def objective(params):
        velocity = WanDiT(config).apply({"params": params}, inputs["latents"], inputs["timestep"], inputs["text"])
        return (velocity * inputs["cotangent"]).sum(), velocity

    gradients, velocity = jax.jit(jax.grad(objective, has_aux=True))(dit_case.params(config))
    np.testing.assert_allclose(velocity, expected["velocity"], atol=2e-5, rtol=0)
    for key, gradient in export_tensors(dit_rows(config), gradients).items():
        norm = np.linalg.norm(expected["gradients"][key])
        assert norm > 0, key
        assert np.linalg.norm(gradient - expected["gradients"][key]) <= 1e-5 * norm, key
