"""Sample grids during training show the same clips on one device and on many."""

import numpy as np
import pytest

from tests.parity import dit_case
from wanjax import partition
from wanjax.codec import open_codec
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.preview import make_preview
from wanjax.sample_config import SampleConfig

CONFIG = DiTConfig(width=48, heads=4, layers=1, ffn=64, in_channels=16, out_channels=16, freq_dim=24, text_dim=20)


@pytest.mark.parametrize("expert", ["high", "low"])
def test_a_mesh_of_more_devices_than_clips_are_shown(expert):
    draw = np.random.default_rng(0)
    batch = {"latents": draw.standard_normal((8, 2, 4, 4, 16)).astype(np.float32),
             "text": draw.standard_normal((8, 5, 20)).astype(np.float32)}
    params, codec = dit_case.params(CONFIG), open_codec("light_scenes_tiny")
    images = []
    for mesh in (None, partition.make_mesh({"data": 2, "fsdp": 4})):
        preview = make_preview(expert, WanDiT(CONFIG, mesh), codec, batch, SampleConfig(steps=3, boundary=0.5), seed=1,
                               clips=3)
        images.append(preview(params))
    assert images[0].shape == images[1].shape == (3 * 32, 5 * 32, 3)
    assert images[0].std() > 1
    np.testing.assert_allclose(*(image.astype(int) for image in images), atol=1)  # of 255: sums run in another order
