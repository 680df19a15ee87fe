"""Sample grids during training show the same clips on one device and on many."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import dit_case
from wanjax import partition
from wanjax.codec import open_codec
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.preview import make_preview
from wanjax.sample_config import SampleConfig

CONFIG = DiTConfig(width=48, heads=4, layers=1, ffn=64, in_channels=16, out_channels=16, freq_dim=24, text_dim=20)


def clips(count: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {"latents": draw.standard_normal((count, 2, 4, 4, 16)).astype(np.float32),
            "text": draw.standard_normal((count, 5, 20)).astype(np.float32),
            "image": draw.standard_normal((count, 2, 4, 4, 16)).astype(np.float32)}


@dataclasses.dataclass
class Steady:
    """Stands for a transformer whose velocity is 1 everywhere; counts how often it is put into the program."""

    config: DiTConfig = CONFIG
    mesh: None = None
    calls: int = 0

    def apply(self, variables, latents, timestep, text):
        self.calls += 1
        return jnp.ones((*latents.shape[:-1], self.config.out_channels))


@pytest.mark.parametrize("expert", ["high", "low"])
def test_a_mesh_of_more_devices_than_clips_are_shown(expert):
    batch = clips(8)
    params, codec = dit_case.params(CONFIG), open_codec("light_scenes_tiny")
    images = []
    for mesh in (None, partition.make_mesh({"data": 2, "fsdp": 4})):
        preview = make_preview(expert, WanDiT(CONFIG, mesh), codec, batch, SampleConfig(steps=3, boundary=0.5), seed=1,
                               clips=3)
        images.append(preview({"params": params}))
    assert images[0].shape == images[1].shape == (3 * 32, 5 * 32, 3)
    assert images[0].std() > 1
    np.testing.assert_allclose(*(image.astype(int) for image in images), atol=1)  # of 255: sums run in another order


def test_a_single_expert_runs_to_the_end_and_no_further():
    calls = {}
    for boundary in (0.5, 0.0):
        model = Steady()
        preview = make_preview("high", model, open_codec("light_scenes_tiny"), clips(1),
                               SampleConfig(steps=3, shift=1.0, boundary=boundary), seed=1, clips=1)
        preview({})
        calls[boundary] = model.calls
    assert calls[0.0] == calls[0.5] - 1  # at the boundary one more call gives the clean estimate; the end is clean


def test_the_share_of_clips_that_continue_their_first_frame_begins_with_it():
    batch, codec = clips(4), open_codec("light_scenes_tiny")
    image = make_preview("high", Steady(), codec, batch, SampleConfig(steps=3, boundary=0.0), seed=1, clips=2,
                         first_frame=0.5)({})
    own = codec.model.apply({"params": codec.params}, batch["latents"][:2, :1], method="decode")
    own = np.clip((np.asarray(own)[:, 0] + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
    shown = image.reshape(2, 32, 5, 32, 3)[:, :, 0]
    np.testing.assert_allclose(shown[0].astype(int), own[0].astype(int), atol=1)
    assert np.abs(shown[1].astype(int) - own[1]).mean() > 5


def test_an_image_is_read_at_every_step():
    config = dataclasses.replace(CONFIG, in_channels=36)
    params, batch = dit_case.params(config), clips(2)
    images = [make_preview("high", WanDiT(config), open_codec("light_scenes_tiny"), batch | {"image": image},
                           SampleConfig(steps=2, boundary=0.0), seed=1, clips=2, first_frame=1.0)({"params": params})
              for image in (batch["image"], -batch["image"])]
    assert np.abs(images[0].astype(int) - images[1]).mean() > 1
