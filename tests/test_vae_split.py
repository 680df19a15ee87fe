"""Clips and rows of frames over eight simulated devices give what one device gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import vae_case
from wanjax import partition
from wanjax.models.rows import import_tensors
from wanjax.models.rows.vae import vae_rows
from wanjax.models.vae import VAEConfig, WanVAE
from wanjax.models.vae_layers import attend
from wanjax.models.vae_split import RowSplit

# eight channels at least: norms over fewer turn one unit in the last place of a latent into 3e-5 of a pixel
CODECS = {
    "wan2.1": VAEConfig(base_dim=8, num_res_blocks=1, dim_mult=(1, 1, 2, 2)),
    "wan2.2": VAEConfig(
        base_dim=8, decoder_base_dim=12, num_res_blocks=1, dim_mult=(1, 1, 2, 2), z_dim=6, patch=2, residual=True,
        latents_mean=(-0.2, 0.1, 0.0, 0.3, -0.1, 0.2), latents_std=(0.5, 1.2, 0.7, 0.9, 0.6, 1.4),
    ),
}  # fmt: skip
FRAMES, COLUMNS = 9, 2  # of pixels in time, of latents across
# latent rows: 11 over 8 devices fill five parts and half of the sixth, and leave two empty
UNEVEN, EVEN = "rows over 8, uneven", "clips over 2, rows over 4"
SPLITS = {UNEVEN: ({"seq": 8}, 1, 11), EVEN: ({"fsdp": 2, "seq": 2, "tensor": 2}, 2, 8)}


def random_clip(config: VAEConfig, clips: int, rows: int) -> np.ndarray:
    size = (rows * config.strides[1], COLUMNS * config.strides[2])
    return np.concatenate([vae_case.video(seed=seed, frames=FRAMES, size=size) for seed in range(clips)])


def joined(chunks) -> np.ndarray:
    return np.concatenate([np.asarray(chunk) for chunk in chunks], axis=1)


@pytest.fixture(scope="module")
def variables():
    return {name: {"params": import_tensors(vae_rows(config), vae_case.foreign_params(config, seed=3))}
            for name, config in CODECS.items()}


@pytest.mark.parametrize(("name", "split"), [*((name, UNEVEN) for name in CODECS), ("wan2.1", EVEN)])
def test_split_is_unsplit_within_1e_5(name, split, variables):
    config, (sizes, clips, rows) = CODECS[name], SPLITS[split]
    alone, many = WanVAE(config), WanVAE(config, partition.make_mesh(sizes))
    video = random_clip(config, clips, rows)
    latents = np.asarray(alone.apply(variables[name], video))
    np.testing.assert_allclose(many.apply(variables[name], video), latents, atol=1e-5, rtol=0)
    decoded = np.asarray(alone.apply(variables[name], latents, method="decode"))
    np.testing.assert_allclose(many.apply(variables[name], latents, method="decode"), decoded, atol=1e-5, rtol=0)
    if split == EVEN:
        chunked = many.apply(variables[name], video, method="encode_chunked")
        np.testing.assert_allclose(chunked, latents, atol=1e-5, rtol=0)
    if clips == 1:  # in chunks the same lines run with what was kept
        streamed = joined(many.stream(variables[name], video, method="encode"))
        np.testing.assert_allclose(streamed, latents, atol=1e-5, rtol=0)
        np.testing.assert_allclose(joined(many.stream(variables[name], latents)), decoded, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CODECS)
def test_constants_and_ramps_keep_every_frames_brightness(name, variables):
    """Whole, in chunks, and split over 8 devices in chunks: frame means within 1e-4."""
    config, (sizes, _, rows) = CODECS[name], SPLITS[UNEVEN]
    levels = np.stack([np.full(FRAMES, 0.3), np.linspace(-0.6, 0.6, FRAMES)]).astype(np.float32)
    shape = (2, FRAMES, rows * config.strides[1], COLUMNS * config.strides[2], 3)
    videos = np.broadcast_to(levels[:, :, None, None, None], shape)[:, None]  # one after the other, as the clips above
    alone, many = WanVAE(config), WanVAE(config, partition.make_mesh(sizes))

    def through(suffix: str) -> np.ndarray:
        latents = [np.asarray(alone.apply(variables[name], video, method="encode" + suffix)) for video in videos]
        decoded = [alone.apply(variables[name], one, method="decode" + suffix) for one in latents]
        return np.concatenate(decoded).mean((2, 3, 4))

    whole = through("")
    assert np.abs(np.diff(whole[1])).min() > 1e-2  # else the means would not tell one frame from the next
    np.testing.assert_allclose(through("_chunked"), whole, atol=1e-4, rtol=0)
    latents = [joined(many.stream(variables[name], video, method="encode")) for video in videos]
    split = np.concatenate([joined(many.stream(variables[name], one)) for one in latents])
    np.testing.assert_allclose(split.mean((2, 3, 4)), whole, atol=1e-4, rtol=0)


def test_every_part_of_the_frame_looks_at_every_other(variables):
    """A pixel of the last row changes what the first device decodes: attention is not cut at the parts' edges."""
    config, (sizes, _, rows) = CODECS["wan2.1"], SPLITS[UNEVEN]
    latents = vae_case.latents(1 + (FRAMES - 1) // 4, (rows, COLUMNS), config.z_dim)
    changed = latents.copy()
    changed[:, :, -1] += 3.0
    before, after = (np.asarray(WanVAE(config, partition.make_mesh(sizes)).apply(variables["wan2.1"], z,
                                                                                 method="decode"))
                     for z in (latents, changed))
    assert np.abs(before - after)[:, :, :8].max() > 1e-4


@pytest.mark.parametrize("method", ["decode", "encode"])
def test_every_device_keeps_its_own_part_of_rows_that_do_not_divide(method):
    """Of later chunks of a stream: what comes in and goes out, and frames of pixels, which divide."""
    config, (sizes, _, rows) = CODECS["wan2.1"], SPLITS[UNEVEN]
    model = WanVAE(config, partition.make_mesh(sizes))
    pixels = (1, 4, rows * config.strides[1], COLUMNS * config.strides[2], 3)
    latents = (1, 1, rows, COLUMNS, config.z_dim)
    given, made = (latents, pixels) if method == "decode" else (pixels, latents)
    compiled = model.lowered(jax.ShapeDtypeStruct(given, jnp.float32), method=method).compile()
    _, x, kept_before = compiled.input_shardings[0]
    out, kept_after = compiled.output_shardings
    assert len(kept_before) == len(kept_after) > 10
    for kept in (*kept_before, *kept_after):
        assert kept.shard_shape((1, 2, 16, 4, 8))[2] == 2  # of 8 times 2 latent rows, 5 below the frame
    for place, shape in ((x, given), (out, made)):
        assert place.shard_shape(shape)[2] == (rows if shape == latents else rows * config.strides[1] // 8)


def test_neighbours_rows_are_exchanged_and_zeros_stand_outside():
    mesh, rows = partition.make_mesh({"seq": 8}), np.arange(1.0, 23.0, dtype=np.float32)
    split = RowSplit(("seq",), 8, 11)
    x = np.pad(rows, (0, 10), constant_values=99.0)  # 22 rows, two per latent row; below them what must not be seen
    x = np.broadcast_to(x[None, None, :, None, None], (1, 1, 32, 1, 1))
    spec = jax.sharding.PartitionSpec(None, None, "seq")
    found = jax.shard_map(lambda y: split.with_neighbours(y, 1, 1), mesh=mesh, in_specs=spec, out_specs=spec)(x)
    expected = np.pad(rows, (1, 32 - 22 + 1))
    parts = [expected[4 * part : 4 * part + 6] for part in range(8)]
    np.testing.assert_array_equal(np.asarray(found)[0, 0, :, 0, 0].reshape(8, 6), parts)


def test_refuses_clips_that_do_not_divide_over_the_mesh(variables):
    model = WanVAE(CODECS["wan2.1"], partition.make_mesh({"fsdp": 4, "seq": 2}))
    with pytest.raises(ValueError, match="3 clips do not divide over the 4 devices of mesh axes data and fsdp; give"):
        model.apply(variables["wan2.1"], np.zeros((3, 1, 16, 16, 3), np.float32))
    with pytest.raises(ValueError, match="1 clips do not divide"):
        model.stream(variables["wan2.1"], np.zeros((1, 2, 2, 2, 16), np.float32))


def test_attention_in_blocks_is_attention_at_once():
    query, key, value = np.random.default_rng(0).standard_normal((3, 2, 37, 8)).astype(np.float32)
    at_once = attend(query, key, value)
    for limit in (2 * 37 * 10, 1):  # four blocks of ten queries; one query at a time
        np.testing.assert_allclose(attend(query, key, value, limit=limit), at_once, atol=1e-6, rtol=0)
    shapes = shapes_within(lambda q: attend(q, key, value, limit=2 * 37 * 10), query)
    assert (2, 10, 37) in shapes and max(np.prod(shape) for shape in shapes) <= 2 * 10 * 37


def test_a_frame_of_720p_is_attended_to_in_blocks():
    """14,400 latents would need 830 MB of logits; the middle of Wan2.1's codec at that size holds at most 64 MiB."""
    z = jax.ShapeDtypeStruct((1, 90 * 160, 384), jnp.float32)
    assert max(np.prod(shape) for shape in shapes_within(attend, z, z, z)) <= 1 << 24


def shapes_within(function, *arguments) -> list[tuple[int, ...]]:
    """Shapes of everything that a function computes, inside its loops too."""

    def equations(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn
            for inner in jax.tree.leaves(eqn.params, is_leaf=lambda p: hasattr(p, "jaxpr")):
                if hasattr(inner, "jaxpr"):
                    yield from equations(inner.jaxpr)

    return [v.aval.shape for eqn in equations(jax.make_jaxpr(function)(*arguments).jaxpr) for v in eqn.outvars]
