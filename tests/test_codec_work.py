"""Work of the codecs by formula: that of the compiled programs, and of their parts."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from wanjax import collectives, executed, hlo, partition
from wanjax.codec_work import chunk_bytes, chunk_flops, clip_flops
from wanjax.models.vae import WAN22, VAEConfig, WanVAE

STATISTICS = dict(z_dim=4, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4)
CONFIGS = {
    "wan21": VAEConfig(base_dim=8, num_res_blocks=1, **STATISTICS),
    "wan22": dataclasses.replace(WAN22, base_dim=8, decoder_base_dim=16, num_res_blocks=1, **STATISTICS),
}


def compiled(config, method, mesh=None):
    """Of clips of 3 latent frames of 4 x 4."""
    vae = WanVAE(config, mesh)
    side = 4 * vae.strides[1]
    shape = (1, 3, 4, 4, 4) if method.startswith("decode") else (1, 9, side, side, 3)
    params = jax.eval_shape(vae.init, jax.random.key(0))["params"]
    run = jax.jit(lambda params, x: vae.apply({"params": params}, x, method=method))
    return hlo.parse(run.lower(params, jax.ShapeDtypeStruct(shape, jnp.float32)).compile().as_text())


@pytest.fixture(scope="module")
def parted():
    """Decoding over two parts of the rows."""
    return compiled(CONFIGS["wan21"], "decode_chunked", partition.make_mesh({"seq": 2}, jax.devices()[:2]))


def test_the_formula_is_what_the_program_computes(parted, monkeypatch):
    """Zeros around a frame are multiplied in the formula; the count leaves them out unless it is told otherwise."""
    monkeypatch.setattr(executed, "_valid", lambda size, kernel, out, *settings: kernel * out)
    assert 2 * executed.count(parted).products == clip_flops(CONFIGS["wan21"], "decode", 3, 4, 4)
    encoding = executed.count(compiled(CONFIGS["wan22"], "encode_chunked"))
    assert encoding.products == clip_flops(CONFIGS["wan22"], "encode", 3, 4, 4)


def test_parts_of_a_frame_send_rows_keys_and_values(parted):
    """Frames that were kept are sent again, together with those of the chunk."""
    found = collectives.of(parted, 2)
    assert found.unknown_loops == 0
    gathered = sum(each.bytes for each in found.collectives if each.op == "all-gather")
    config = CONFIGS["wan21"]
    # keys and values of three frames: half of each, float32, of 16 positions of the middle's channels
    assert gathered == 3 * 2 * 16 * config.base_dim * config.dim_mult[-1] * 4 // 2
    least = chunk_bytes(config, "decode", 4, 4, 2, 4, first=True) + 2 * chunk_bytes(config, "decode", 4, 4, 2, 4)
    assert least < found.bytes < 3 * least
    assert chunk_bytes(config, "decode", 4, 4, 1, 4) == 0


def test_work_of_the_published_codec():
    config = VAEConfig()
    chunk = chunk_flops(config, "decode", 90, 160)
    assert clip_flops(config, "decode", 1, 90, 160) == chunk_flops(config, "decode", 90, 160, first=True)
    assert 19 * chunk < clip_flops(config, "decode", 21, 90, 160) - chunk < 21 * chunk
    # three residual blocks at full resolution by hand: two 3 x 3 x 3 convolutions of 96 channels each
    last = 4 * 720 * 1280 * 2 * 27 * 96 * 96 * 6
    assert 0.2 < last / chunk < 0.6
