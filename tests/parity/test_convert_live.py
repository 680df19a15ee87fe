"""Pipelines that convert wrote, opened by diffusers' own pipelines."""

import numpy as np
import pytest

pytest.importorskip("torch")
import diffusers

from tests.test_convert import write_release
from wanjax import convert
from wanjax.family import MEMBERS
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
