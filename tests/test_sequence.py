"""Tokens shared by devices: every token attends to every other and to no padding, however devices share the work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec as P

from wanjax import collectives, partition
from wanjax.models import attention as module
from wanjax.models import sequence
from wanjax.models.attention import attention, chosen
from wanjax.models.sequence import Shards
from wanjax.models.splash import SplashBlocks

BLOCKS = SplashBlocks(forward=(128, 128, 128), backward=(128, 256, 128))


@pytest.fixture(autouse=True)
def kernels_of_other_platforms_are_computed_here(monkeypatch):
    """Under ``splash`` and ``cudnn`` alone: that of TPUs is run step by step, that of GPUs is the formula.

    The formula takes and gives what cuDNN's documentation says, in the places where jax puts it.
    """
    interpreted = functools.partial(splash_attention.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha", interpreted)
    monkeypatch.setattr(module, "chosen", lambda way, *rest: way if way in ("splash", "cudnn") else chosen(way, *rest))

    def logits(q, k, kv_seqlen, scale, mask_type):
        found = scale * jnp.einsum("bknd,bkmd->bknm", q, k)
        if mask_type == fused.MaskType.NO_MASK:
            return found
        return jnp.where(jnp.arange(k.shape[2]) < kv_seqlen[:, None, None, None], found, -jnp.inf)

    def forward(q, k, v, *, q_seqlen, kv_seqlen, scale, mask_type, qkv_layout, return_residual):
        assert qkv_layout == "BNTH" and return_residual and (q_seqlen is None or q_seqlen.shape == kv_seqlen.shape)
        every = logits(q, k, kv_seqlen, scale, mask_type)
        return jnp.einsum("bknm,bkmd->bknd", jax.nn.softmax(every), v), jax.nn.logsumexp(every, -1)

    def backward(scale, seed, dropout_rate, variadic_args, mask_type, layout, sliding_window_length, is_training,
                 return_residual, res, grad_output):  # fmt: skip
        assert (layout, variadic_args, dropout_rate) == (fused.AttentionLayout.BNTH.value, (False, False), 0.0)
        q, k, v, _, _, kv_seqlen, *_, statistics, out = res
        assert len(res) == 12
        weights = jnp.exp(logits(q, k, kv_seqlen, scale, mask_type) - statistics[..., None])
        along = jnp.sum(out * grad_output, -1, keepdims=True)
        d_logits = scale * weights * (jnp.einsum("bknd,bkmd->bknm", grad_output, v) - along)
        d_q, d_k = jnp.einsum("bknm,bkmd->bknd", d_logits, k), jnp.einsum("bknm,bknd->bkmd", d_logits, q)
        return d_q, d_k, jnp.einsum("bknm,bknd->bkmd", weights, grad_output), *(None,) * 7

    monkeypatch.setattr(fused, "dot_product_attention", forward)
    monkeypatch.setattr(fused, "_dot_product_attention_bwd_rule", backward)


def _operands(tokens, heads, clips=2):
    return tuple(np.random.default_rng(i).standard_normal((clips, tokens, heads, 8)).astype(np.float32)
                 for i in range(3))  # fmt: skip


def _loss(out):
    """Of which every value matters."""
    return jnp.sum(jnp.sin(3 * out.astype(jnp.float32)))


def _shared(sizes, scheme, way, tokens, heads, name=""):
    """(q, k, v) of all tokens -> the result, as the stack computes it."""
    mesh = partition.make_mesh(sizes)
    shards = Shards.of(scheme, heads, mesh, tokens)
    size = (1, tokens, heads, 8)
    added = sequence.padded(tokens, sizes["seq"], module.tile(way, "cpu", "float32", size, size)) - tokens
    spec = P("fsdp" if sizes.get("fsdp", 1) > 1 else None, "seq")
    per_shard = jax.shard_map(
        functools.partial(shards.attention, implementation=way, mesh=mesh, splash_blocks=BLOCKS, name=name), mesh=mesh,
        in_specs=spec, out_specs=spec, axis_names={name for name in ("fsdp", "seq") if sizes.get(name, 1) > 1},
    )  # fmt: skip

    def run(*operands):
        # of padding nothing is said but that it is finite
        filled = (jnp.pad(x, ((0, 0), (0, added), (0, 0), (0, 0)), constant_values=1e3) for x in operands)
        return per_shard(*filled)[:, :tokens]

    return run


def _gradients(function, operands):
    compiled = jax.jit(jax.value_and_grad(lambda *x: _loss(function(*x)), argnums=(0, 1, 2)))
    return jax.block_until_ready(compiled(*operands))


CASES = [
    ("plain", {"fsdp": 2, "seq": 4}, "auto", 13, 6),  # two devices share heads, and two such pairs make rings
    ("plain", {"seq": 8}, "ring", 9, 2),  # some devices have nothing but padding
    ("blockwise", {"seq": 8}, "auto", 300, 4),
    ("blockwise", {"fsdp": 2, "seq": 2, "tensor": 2}, "ring", 301, 2),
    ("splash", {"fsdp": 2, "seq": 2, "tensor": 2}, "ring", 301, 2),
    ("splash", {"fsdp": 2, "seq": 4}, "heads", 301, 4),
    ("cudnn", {"seq": 8}, "ring", 9, 2),
    ("cudnn", {"fsdp": 2, "seq": 2, "tensor": 2}, "ring", 16, 2),
]


@pytest.mark.parametrize("way,sizes,scheme,tokens,heads", CASES, ids=str)
def test_result_and_gradients_are_those_of_the_formula(way, sizes, scheme, tokens, heads):
    operands = _operands(tokens, heads)
    found = _gradients(_shared(sizes, scheme, way, tokens, heads), operands)
    expected = _gradients(functools.partial(attention, implementation="plain"), operands)
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5, abs=1e-3)
    for one, other in zip(found[1], expected[1], strict=True):
        assert np.linalg.norm(other) > 1
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=8e-6)


def test_for_a_kernel_of_whole_tiles_each_device_has_whole_tiles():
    clip = (1, 75600, 40, 128)
    tiles = [module.tile("auto", platform, "bfloat16", clip, clip) for platform in ("tpu", "gpu", "cpu")]
    assert tiles == [128, 1, 1]
    assert [sequence.padded(75600, seq, tiles[0]) for seq in (1, 4, 8)] == [75600, 75776, 75776]
    assert [sequence.padded(9, 4), sequence.padded(9, 1, 128)] == [12, 9]


def test_gradients_in_bfloat16_are_near_those_in_float32():
    exact = _operands(37, 1)
    short = [jnp.asarray(x, jnp.bfloat16) for x in exact]
    _, expected = _gradients(functools.partial(attention, implementation="plain"), exact)
    _, found = _gradients(_shared({"fsdp": 2, "seq": 4}, "ring", "blockwise", 37, 1), short)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == jnp.bfloat16
        assert np.linalg.norm(np.asarray(one, np.float32) - other) < 0.03 * np.linalg.norm(other)


def test_a_longer_ring_takes_no_more_memory_and_sends_no_more_than_it_has_to():
    temporary, each, heads = {}, 128, 1
    for size in (4, 8):
        shapes = [jax.ShapeDtypeStruct((8 // size, size * each, heads, 8), jnp.float32)] * 3
        run = _shared({"fsdp": 8 // size, "seq": size}, "ring", "blockwise", size * each, heads)
        step = jax.jit(jax.grad(lambda *x, run=run: _loss(run(*x)), argnums=(0, 1, 2))).lower(*shapes)
        compiled = step.compile()
        temporary[size] = compiled.memory_analysis().temp_size_in_bytes
        found = collectives.parse(compiled.as_text(), 8)
        passed = [line for line in found.collectives if line.op == "collective-permute"]
        # keys and values, and again with their gradients
        assert sum(line.bytes for line in passed) == (size - 1) * 6 * each * heads * 8 * 4
    assert temporary[8] < 1.05 * temporary[4]


def test_what_is_kept_by_name_passes_by_once_less():
    run = _shared({"fsdp": 4, "seq": 2}, "ring", "plain", 8, 1, name="kept")

    def passed(policy):
        loss = jax.checkpoint(lambda *x: _loss(run(*(jnp.cos(each) for each in x))), policy=policy)
        return str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(*_operands(8, 1, clips=4))).count("ppermute[")

    # keys and values forward; backward the same, and home with their gradients
    assert passed(jax.checkpoint_policies.nothing_saveable) == 2 + 2 + 4
    assert passed(module.keeps("kept")) == 2 + 4


@pytest.mark.parametrize("scheme,heads,seq,tensor,expected", [
    ("auto", 40, 8, 1, 8), ("auto", 40, 16, 1, 8), ("auto", 40, 3, 1, 1), ("auto", 12, 8, 1, 4),
    ("auto", 40, 4, 8, 1),  # five heads for each device of tensor
    ("auto", 6, 4, 4, 2),  # heads that are not split over tensor anyway
    ("heads", 40, 4, 8, 4), ("ring", 40, 8, 1, 1),
])  # fmt: skip
def test_heads_are_shared_as_far_as_they_divide(scheme, heads, seq, tensor, expected):
    assert sequence.shared(scheme, heads, seq, tensor) == expected


def test_a_ring_calls_the_kernel_of_a_gpu(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(module, "chosen", lambda way, _, *rest: chosen(way, "gpu", *rest))
    for tokens in (2048, 2046):  # and with padding
        run = _shared({"fsdp": 2, "seq": 4}, "ring", "auto", tokens, 4)
        step = jax.jit(jax.grad(lambda *x, run=run: _loss(run(*x)), argnums=(0, 1, 2)))
        shapes = [jax.ShapeDtypeStruct((2, tokens, 4, 64), jnp.bfloat16)] * 3
        text = step.trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
        # the first step, those of the loop and the last; forward the first is one of the loop
        assert (text.count("__cudnn$fmhaSoftmax("), text.count("__cudnn$fmhaSoftmaxBackward(")) == (2, 3)
