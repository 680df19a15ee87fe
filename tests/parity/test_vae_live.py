"""The codec against diffusers on this machine, at other sizes than the recorded case too."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is installed by make parity")

from tests.parity import vae, vae_case
from wanjax.models.rows import import_tensors
from wanjax.models.rows.vae import vae_rows
from wanjax.models.vae import VAEConfig, WanVAE

CONFIGS = {
    "wan": vae_case.CONFIG,
    "one block, other multiples": VAEConfig(base_dim=6, num_res_blocks=1, dim_mult=(1, 3, 2, 4)),
    "time halved first": VAEConfig(base_dim=4, temporal_downsample=(True, False, True)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_encode_and_decode_within_1e_4(name):
    config = CONFIGS[name]
    expected = vae.outputs(config)
    variables = {"params": import_tensors(vae_rows(config), vae_case.foreign_params(config))}
    model = WanVAE(config)
    for suffix in ("", "_chunked"):
        mean, logvar = model.apply(variables, vae_case.video(), method="moments")
        encoded = np.asarray(model.apply(variables, vae_case.video(), method="encode" + suffix))
        normalised = (expected["mean"] - np.float32(config.latents_mean)) / np.float32(config.latents_std)
        decoded = model.apply(variables, vae_case.latents(), method="decode" + suffix)
        np.testing.assert_allclose(encoded, normalised, atol=1e-4, rtol=0)
        np.testing.assert_allclose(mean, expected["mean"], atol=1e-4, rtol=0)
        np.testing.assert_allclose(logvar, expected["logvar"], atol=1e-4, rtol=0)
        np.testing.assert_allclose(decoded, expected["video"], atol=1e-4, rtol=0)
