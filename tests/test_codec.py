"""A codec by name or folder: found, told from others, and in float32 whatever its file holds."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest

from wanjax import hub
from wanjax.codec import find_codec, open_codec
from wanjax.models.vae import VAEConfig, WanVAE

MODEL = WanVAE(VAEConfig(base_dim=4, num_res_blocks=1, dim_mult=(1, 1, 2, 2), param_dtype="bfloat16"))


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))["params"]


def test_a_bfloat16_file_is_computed_with_in_float32_unless_asked_otherwise(tmp_path, params):
    hub.save_vae(tmp_path, MODEL, params)
    opened = open_codec(str(tmp_path))
    assert opened.model.config == dataclasses.replace(MODEL.config, dtype="float32", param_dtype="float32")
    chex.assert_trees_all_equal(opened.params, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params))
    stored = open_codec(str(tmp_path), dtype=None)
    assert (stored.model.config.dtype, stored.model.config.encoder_dtype) == ("bfloat16", "float32")
    chex.assert_trees_all_equal(stored.params, params)
    assert stored.fingerprint == opened.fingerprint


def test_the_fingerprint_is_of_the_weights(tmp_path, params):
    hub.save_vae(tmp_path / "one", MODEL, params)
    hub.save_vae(tmp_path / "same", MODEL, params)
    hub.save_vae(tmp_path / "other", MODEL, jax.tree.map(lambda leaf: leaf * 2, params))
    prints = [open_codec(str(tmp_path / name)).fingerprint for name in ("one", "same", "other")]
    assert prints[0] == prints[1] != prints[2]


def test_an_unknown_name_lists_the_shipped_ones():
    with pytest.raises(FileNotFoundError, match="light_scenes_all, light_scenes_tiny"):
        find_codec("light_scenes")
