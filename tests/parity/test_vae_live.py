"""The codecs against diffusers on this machine, at other sizes than the recorded cases too."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is installed by make parity")
import diffusers
import torch

from tests.parity import vae, vae_case
from tests.parity.vae_case import CASES, Case
from wanjax.models.rows import import_tensors
from wanjax.models.rows.vae import vae_rows
from wanjax.models.vae import WAN22, VAEConfig, WanVAE

WAN22_TINY = CASES["vae22"].config
LIVE = {
    "wan2.1": CASES["vae"],
    "one block, other multiples": Case(VAEConfig(base_dim=6, num_res_blocks=1, dim_mult=(1, 3, 2, 4)), 13, (32, 24)),
    "time halved first": Case(VAEConfig(base_dim=4, temporal_downsample=(True, False, True)), 13, (32, 24)),
    "a wider decoder": Case(VAEConfig(base_dim=4, decoder_base_dim=6, num_res_blocks=1), 5, (16, 24)),
    **{f"wan2.2, {frames} frames": Case(WAN22_TINY, frames, (64, 64)) for frames in (1, 5, 9)},
    "wan2.2, time halved first": Case(replace(WAN22_TINY, temporal_downsample=(True, False, True)), 9, (32, 48)),
    "patches without shortcuts": Case(replace(WAN22_TINY, residual=False, num_res_blocks=1), 5, (32, 48)),
    "shortcuts without patches": Case(replace(WAN22_TINY, patch=1, num_res_blocks=1), 5, (16, 24)),
}


@pytest.mark.parametrize("name", LIVE)
def test_encode_and_decode_within_1e_4(name):
    case = LIVE[name]
    config, expected = case.config, vae.outputs(case)
    variables = {"params": import_tensors(vae_rows(config), vae_case.foreign_params(config))}
    model = WanVAE(config)
    for suffix in ("", "_chunked"):
        mean, logvar = model.apply(variables, case.video, method="moments")
        encoded = np.asarray(model.apply(variables, case.video, method="encode" + suffix))
        normalised = (expected["mean"] - np.float32(config.latents_mean)) / np.float32(config.latents_std)
        decoded = model.apply(variables, case.latents, method="decode" + suffix)
        np.testing.assert_allclose(encoded, normalised, atol=1e-4, rtol=0)
        np.testing.assert_allclose(mean, expected["mean"], atol=1e-4, rtol=0)
        np.testing.assert_allclose(logvar, expected["logvar"], atol=1e-4, rtol=0)
        np.testing.assert_allclose(decoded, expected["video"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", [VAEConfig(), WAN22], ids=["wan2.1", "wan2.2"])
def test_the_published_codecs_tensors_have_diffusers_names_and_shapes(config):
    fields = {name: value for name, value in vae.vae_json(config).items() if not name.startswith("_")}
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKLWan(**fields).state_dict()
    rows = vae_rows(config)
    assert {row.diffusers: row.foreign_shape for row in rows} == {n: tuple(t.shape) for n, t in theirs.items()}
