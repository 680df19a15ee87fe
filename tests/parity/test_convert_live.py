"""Pipelines that convert wrote, opened by diffusers' own pipelines."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch")
import diffusers
import torch

from tests.test_convert import CODEC21, random_params, write_release
from wanjax import convert, hub
from wanjax.family import MEMBERS
from wanjax.models.vae import WanVAE
from wanjax.weight_files import open_weights


@pytest.mark.parametrize("name", ["Wan2.2-T2V-A14B", "Wan2.2-I2V-A14B", "Wan2.2-TI2V-5B", "Wan2.1-T2V-1.3B"])
def test_diffusers_opens_a_pipeline_that_came_from_the_official_layout(tmp_path, name):
    first = write_release(tmp_path / "first", MEMBERS[name])
    convert.convert(first, tmp_path / "official", layout="official")
    convert.convert(tmp_path / "official", tmp_path / "back")
    opened = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "back")
    image = MEMBERS[name].model.in_channels == 36
    assert type(opened) is (diffusers.WanImageToVideoPipeline if image else diffusers.WanPipeline)
    assert opened.config.boundary_ratio == (MEMBERS[name].sample.boundary or None)
    assert opened.config.expand_timesteps == (name == "Wan2.2-TI2V-5B")
    assert opened.scheduler.config.flow_shift == MEMBERS[name].sample.shift
    assert (opened.transformer_2 is not None) == (len(MEMBERS[name].experts) == 2)
    for part in ("transformer", "transformer_2", "vae", "text_encoder"):
        if (module := getattr(opened, part)) is None:
            continue
        stored = open_weights(first / part)
        state = {key: tensor for key, tensor in module.state_dict().items() if key != "encoder.embed_tokens.weight"}
        assert state.keys() == set(stored), part
        for key, tensor in state.items():
            np.testing.assert_array_equal(tensor.float().numpy(), stored[key].astype(np.float32), err_msg=key)


@pytest.mark.parametrize("name", ["Wan2.2-T2V-A14B", "Wan2.2-TI2V-5B"])
def test_the_official_root_with_pth_files_opens_in_pytorch_and_comes_back_bit_for_bit(tmp_path, name):
    first = write_release(tmp_path / "first", MEMBERS[name])
    convert.convert(first, tmp_path / "official", layout="official", pth=True)
    codec = "Wan2.2_VAE.pth" if name == "Wan2.2-TI2V-5B" else "Wan2.1_VAE.pth"
    for file, kind in ((codec, torch.float32), ("models_t5_umt5-xxl-enc-bf16.pth", torch.bfloat16)):
        state = torch.load(tmp_path / "official" / file, weights_only=True)
        assert {tensor.dtype for tensor in state.values()} == {kind}
        stored = open_weights(tmp_path / "official" / file)
        assert all(torch.equal(state[key].float(), torch.from_numpy(stored[key].astype(np.float32))) for key in stored)
    convert.convert(tmp_path / "official", tmp_path / "back")
    for part in ("vae", "text_encoder"):
        expected, found = (open_weights(root / part) for root in (first, tmp_path / "back"))
        assert set(expected) == set(found)
        assert all(expected[key].tobytes() == found[key].tobytes() for key in expected)


def test_what_a_pth_would_lose_is_refused_before_anything_is_written(tmp_path):
    config = dataclasses.replace(CODEC21, latents_mean=(0.5,) * 16)
    params = random_params(config, lambda row: "float32", 0)
    hub.save_vae(tmp_path / "vae", WanVAE(config), params)
    with pytest.raises(ValueError, match="a .pth holds tensors alone, from which latents_mean"):
        convert.convert(tmp_path / "vae", tmp_path / "out", layout="official", pth=True)
    with pytest.raises(ValueError, match="pth is of the codec and the text encoder in the layout 'official' alone"):
        convert.convert(tmp_path / "vae", tmp_path / "out", layout="comfyui", pth=True)
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]
