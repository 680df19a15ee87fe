"""Attention is softmax(q kᵀ / √d) v, however it is computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec as P

from wanjax import partition
from wanjax.models import attention as module
from wanjax.models import rows, splash
from wanjax.models.attention import attention, chosen
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows.dit import dit_rows
from wanjax.models.splash import SplashBlocks

WAYS = ("plain", "blockwise", "splash")
BLOCKS = SplashBlocks(forward=(128, 256, 128), backward=(256, 256, 128))


@pytest.fixture(autouse=True)
def kernels_of_a_tpu_are_interpreted(monkeypatch):
    """Under ``splash`` alone: the CPU passes for a TPU, whose kernel is run step by step."""
    interpreted = functools.partial(splash_attention.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha", interpreted)
    monkeypatch.setattr(
        module, "chosen", lambda way, platform, *rest: chosen(way, "tpu" if way == "splash" else platform, *rest)
    )


def _random(*shape, scale=1.0, seed=0):
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(np.float32)


def _reference(q, k, v):
    logits = np.einsum("bnkd,bmkd->bknm", q.astype(np.float64), k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bknm,bmkd->bnkd", weights / weights.sum(-1, keepdims=True), v)


def _run(way, *operands, **options):
    return jax.jit(functools.partial(attention, implementation=way, splash_blocks=BLOCKS, **options))(*operands)


@pytest.mark.parametrize("way", WAYS)
def test_matches_float64_with_other_lengths_of_queries_and_keys(way):
    q, k, v = _random(2, 5, 3, 8), _random(2, 7, 3, 8, seed=1), _random(2, 7, 3, 8, seed=2)
    np.testing.assert_allclose(_run(way, q, k, v), _reference(q, k, v), atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_large_logits_stay_finite(way):
    q, k, v = _random(1, 4, 2, 8, scale=100), _random(1, 4, 2, 8, scale=100, seed=1), _random(1, 4, 2, 8, seed=2)
    np.testing.assert_allclose(_run(way, q, k, v), _reference(q, k, v), atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_softmax_runs_in_float32_for_bfloat16_operands(way):
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (_random(1, 16, 1, 8), _random(1, 512, 1, 8, seed=1),
                                                      np.ones((1, 512, 1, 8), np.float32)))  # fmt: skip
    out = _run(way, q, k, v)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.0, atol=4e-3)
    jaxpr = str(jax.make_jaxpr(functools.partial(_run, way))(q, k, v))
    assert " exp " in jaxpr and all("f32" in line for line in jaxpr.splitlines() if " exp " in line)


def _gradient(way, q, k, v, **options):
    """Of a function of which every output matters, with respect to all three."""
    return jax.grad(lambda *x: jnp.sum(jnp.sin(3 * _run(way, *x, **options))), argnums=(0, 1, 2))(q, k, v)


@pytest.mark.parametrize("way,tokens,keys", [
    ("blockwise", 5, 77), ("blockwise", 128, 77), ("blockwise", 300, 77), ("splash", 5, 77), ("splash", 300, 520),
])  # fmt: skip
def test_gradients_are_those_of_the_formula(way, tokens, keys):
    q, k, v = _random(2, tokens, 3, 8), _random(2, keys, 3, 8, seed=1), _random(2, keys, 3, 8, seed=2)
    np.testing.assert_allclose(_run(way, q, k, v), _run("plain", q, k, v), rtol=1e-6, atol=1e-6)
    for found, expected in zip(_gradient(way, q, k, v), _gradient("plain", q, k, v), strict=True):
        assert np.linalg.norm(expected) > 1
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=4e-6)


def test_gradients_of_few_heads_at_a_time_are_those_of_all(monkeypatch):
    operands = _random(2, 300, 3, 8), _random(2, 520, 3, 8, seed=1), _random(2, 520, 3, 8, seed=2)
    whole = _gradient("splash", *operands)
    for heads in (3, 1):
        # three blocks of keys have a gradient of 512 queries each
        monkeypatch.setattr(splash, "PARTIAL_BYTES", 3 * 512 * 8 * 4 * heads)
        assert f"f32[3,{heads},512,8]" in str(jax.make_jaxpr(lambda *x: _gradient("splash", *x))(*operands))
        for found, expected in zip(_gradient("splash", *operands), whole, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_in_bfloat16_are_near_those_in_float32(way):
    exact = [_random(1, 300, 2, 16, seed=i) for i in range(3)]
    short = [jnp.asarray(x, jnp.bfloat16) for x in exact]
    for found, expected in zip(_gradient(way, *short), _gradient("plain", *exact), strict=True):
        assert found.dtype == jnp.bfloat16
        found = np.asarray(found, np.float32)
        assert np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)


@pytest.mark.parametrize("way,sizes,heads", [
    ("blockwise", {"fsdp": 4, "seq": 2}, 2), ("blockwise", {"fsdp": 2, "seq": 2, "tensor": 2}, 4),
    ("splash", {"fsdp": 4, "seq": 2}, 2), ("splash", {"fsdp": 2, "seq": 2, "tensor": 2}, 4),
    ("splash", {"fsdp": 2, "seq": 2, "tensor": 2}, 2),  # one head per shard: tensor has none to share
], ids=str)  # fmt: skip
def test_kernels_work_inside_the_shard_map_of_the_stack(way, sizes, heads):
    mesh = partition.make_mesh(sizes)
    q = _random(4, 150, heads, 8)
    k, v = (_random(4, 40, heads, 8, seed=i) for i in (1, 2))

    def loss(q, k, v):
        per_shard = jax.shard_map(
            functools.partial(attention, implementation=way, mesh=mesh, splash_blocks=BLOCKS), mesh=mesh,
            # keys that are the same on all shards of fsdp: their gradient is summed over these
            in_specs=(P("fsdp", None, "seq"), P(None, None, "seq"), P("fsdp", None, "seq")),
            out_specs=P("fsdp", None, "seq"), axis_names={"fsdp", "seq"},
        )  # fmt: skip
        return jnp.sum(jnp.sin(3 * per_shard(q, k, v)))

    ways = sizes["fsdp"]

    def alone(q, k, v):
        return jnp.sum(jnp.sin(3 * attention(q, jnp.tile(k, (ways, 1, 1, 1)), v, implementation="plain")))

    k = k[: 4 // ways]
    found = jax.block_until_ready(jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v))
    for one, expected in zip(found, jax.grad(alone, argnums=(0, 1, 2))(q, k, v), strict=True):
        assert np.linalg.norm(expected) > 1
        np.testing.assert_allclose(one, expected, rtol=1e-6, atol=8e-6)


def test_a_kernel_shares_heads_over_tensor_where_no_other_axis_is_manual():
    mesh = partition.make_mesh({"tensor": 8})
    q, k, v = (_random(1, 140, 8, 8, seed=i) for i in range(3))
    for found, expected in zip(_gradient("splash", q, k, v, mesh=mesh), _gradient("plain", q, k, v), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=4e-6)


def test_memory_of_blocks_grows_with_the_length_and_not_with_its_square():
    def peak(tokens):
        shapes = [jax.ShapeDtypeStruct((1, tokens, 1, 128), jnp.float32)] * 3
        stats = jax.jit(functools.partial(_gradient, "blockwise")).lower(*shapes).compile().memory_analysis()
        return stats.temp_size_in_bytes + stats.argument_size_in_bytes + stats.output_size_in_bytes

    short, long = peak(16_380), peak(32_760)
    assert long < 1e9 and long < 2.2 * short


SHORT, LONG = (1, 64, 2, 128), (1, 32_760, 2, 128)


@pytest.mark.parametrize("platform,dtype,shape,way", [
    ("cpu", "float32", LONG, "blockwise"), ("cpu", "bfloat16", LONG, "blockwise"), ("cpu", "float32", SHORT, "plain"),
    ("tpu", "bfloat16", LONG, "splash"), ("tpu", "float32", LONG, "splash"), ("tpu", "bfloat16", SHORT, "plain"),
    ("gpu", "bfloat16", LONG, "cudnn"), ("gpu", "float16", LONG, "cudnn"), ("gpu", "float32", LONG, "blockwise"),
    ("gpu", "bfloat16", (1, 32_760, 2, 12), "blockwise"), ("gpu", "bfloat16", (1, 32_761, 2, 128), "cudnn"),
    ("gpu", "bfloat16", SHORT, "plain"),
])  # fmt: skip
def test_auto_goes_by_length_platform_and_dtype(platform, dtype, shape, way):
    assert chosen("auto", platform, dtype, shape, shape) == way


def test_short_sequences_are_computed_by_the_formula_and_long_ones_in_blocks():
    edge = int(module._SHORT**0.5)
    assert edge**2 == module._SHORT
    for tokens, loops in ((edge, 0), (edge + 1, 2)):
        shapes = [jax.ShapeDtypeStruct((1, tokens, 1, 8), jnp.float32)] * 3
        assert str(jax.make_jaxpr(attention)(*shapes)).count(" scan[") == loops


@pytest.mark.parametrize("arguments,message", [
    (("flash", "cpu", "float32", SHORT), "'flash' is not one of auto, plain, blockwise, splash, cudnn"),
    (("splash", "cpu", "float32", SHORT), "'splash' is a kernel of TPUs, and this is compiled for cpu: choose 'auto'"),
    (("cudnn", "tpu", "bfloat16", SHORT), "'cudnn' is a kernel of GPUs, and this is compiled for tpu"),
    (("cudnn", "gpu", "float32", SHORT), "'cudnn' takes bfloat16 or float16 operands, not float32"),
    (("cudnn", "gpu", "bfloat16", (1, 64, 2, 12)), "size is a multiple of 8, not 12"),
])  # fmt: skip
def test_what_a_platform_does_not_have_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        chosen(*arguments, arguments[-1])


@pytest.mark.parametrize("blocks", [(100, 256, 128), (128, 256), (128, 384, 256), (0, 128, 128)])
def test_blocks_that_a_kernel_cannot_have_are_refused(blocks):
    with pytest.raises(ValueError, match="splash attention, backward = .*: expected queries, keys, keys per step"):
        SplashBlocks(backward=blocks)


@pytest.fixture
def compiled_elsewhere(monkeypatch):
    """Makes the CPU pass for another platform, whose program is made but cannot be run; gives the name to lower for."""

    def platform(name):
        monkeypatch.undo()  # nothing is interpreted
        cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
        monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
        monkeypatch.setattr(module, "chosen", lambda way, _, *rest: chosen(way, name, *rest))
        return ("cuda",) if name == "gpu" else (name,)

    return platform


# a loop over heads of one over blocks
CALLS = {"blockwise": ("cpu", "stablehlo.while", 2), "splash": ("tpu", "custom_call @tpu_custom_call", 1),
         "cudnn": ("gpu", "custom_call @__cudnn$fmhaSoftmax", 1)}  # fmt: skip


@pytest.mark.parametrize("way", CALLS)
def test_each_kernel_is_called_forward_and_backward(compiled_elsewhere, way):
    platform, call, times = CALLS[way]
    platforms = compiled_elsewhere(platform)
    shapes = [jax.ShapeDtypeStruct((2, tokens, 4, 128), jnp.bfloat16) for tokens in (3000, 1200, 1200)]
    traced = jax.jit(functools.partial(_gradient, "auto")).trace(*shapes)
    assert [(leaf.shape, leaf.dtype) for leaf in traced.out_info] == [(s.shape, s.dtype) for s in shapes]
    text = traced.lower(lowering_platforms=platforms).as_text()
    assert text.count(call) == 2 * times
    assert "3000x1200" not in text and "1200x3000" not in text


@pytest.mark.parametrize("way", CALLS)
def test_what_is_kept_by_name_is_not_computed_twice(compiled_elsewhere, way):
    platform, call, times = CALLS[way]
    platforms = compiled_elsewhere(platform)
    shapes = [jax.ShapeDtypeStruct((1, 300, 2, 16), jnp.bfloat16)] * 3

    def count(policy):
        def layer(q, k, v):
            return jnp.sin(3 * attention(jnp.cos(q), k, v, implementation=way, name="kept"))

        loss = jax.value_and_grad(lambda *x: jnp.sum(jax.checkpoint(layer, policy=policy)(*x)), argnums=(0, 1, 2))
        return jax.jit(loss).trace(*shapes).lower(lowering_platforms=platforms).as_text().count(call)

    assert count(jax.checkpoint_policies.nothing_saveable) == 3 * times
    assert count(module.keeps("kept")) == 2 * times


def test_keeping_products_of_matrices_keeps_no_logits(capsys):
    q = jnp.zeros((1, 300, 2, 16))
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    jax.ad_checkpoint.print_saved_residuals(
        jax.checkpoint(functools.partial(attention, implementation="blockwise"), policy=policy), q, q, q)
    kept = capsys.readouterr().out.splitlines()
    assert len(kept) == 3 and all("f32[1,300,2,16] from the argument" in line for line in kept)


@pytest.mark.parametrize("sizes,remat", [
    ({"fsdp": 2, "seq": 2, "tensor": 2}, "attention"), ({"fsdp": 4, "seq": 2}, "attention"),
    ({"tensor": 8}, "attention"),
    ({"fsdp": 2, "seq": 2, "tensor": 2}, "offload"), ({"tensor": 8}, "offload"),
    ({"fsdp": 2, "seq": 2, "tensor": 2}, "none"), ({"tensor": 8}, "none"),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("platform,way,call", [
    ("tpu", "splash", "custom_call @tpu_custom_call"), ("gpu", "cudnn", "custom_call @__cudnn$fmhaSoftmax"),
])  # fmt: skip
def test_the_stack_of_a_mesh_calls_kernels_and_keeps_what_they_give(
    compiled_elsewhere, platform, way, call, sizes, remat
):
    platforms = compiled_elsewhere(platform)
    config = DiTConfig(width=64, heads=4, layers=2, ffn=64, in_channels=4, out_channels=4, freq_dim=24, text_dim=20,
                       attention=way, dtype="bfloat16", remat=remat)  # fmt: skip
    model = WanDiT(config, partition.make_mesh(sizes))
    params = rows.shapes(dit_rows(config), jnp.float32)
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 2, 16, 16, 4), (4,), (4, 6, 20))]
    step = jax.jit(jax.value_and_grad(lambda params, *inputs: jnp.sum(model.apply({"params": params}, *inputs) ** 2)))
    text = step.trace(params, *inputs).lower(lowering_platforms=platforms).as_text()
    # per block: forward and backward of both attentions; cross-attention's also once more, where it is not kept
    assert text.count(call) == (4 if remat == "none" else 5)


@pytest.mark.parametrize("fields,message", [
    ({"attention": "flash"}, "attention 'flash' is not one of"),
    ({"attention": "cudnn"}, "attention 'cudnn' takes 16-bit operands: set dtype to 'bfloat16'"),
    ({"splash_forward": (1000, 2000, 1000)}, "splash attention, forward = .*each a multiple of 128"),
])  # fmt: skip
def test_a_config_refuses_what_attention_cannot_do(fields, message):
    with pytest.raises(ValueError, match=message):
        DiTConfig(width=48, heads=4, layers=2, ffn=64, **fields)
