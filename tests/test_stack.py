"""What the stack keeps, where, in which pieces it works and how parameters reach it changes no gradient."""

import collections
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import dit_case
from wanjax import partition
from wanjax.models import chunks, rows, stack
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows.dit import dit_rows

CONFIG = DiTConfig(width=48, heads=4, layers=2, ffn=64, in_channels=4, out_channels=4, freq_dim=24, text_dim=20)
BATCH = 2


@pytest.fixture(scope="module")
def params():
    return dit_case.params(CONFIG, seed=5)


def _inputs(per_token=False):
    rng = np.random.default_rng(3)
    latents = rng.standard_normal((BATCH, 2, 4, 6, 4)).astype(np.float32)
    timestep = rng.uniform(0, 1000, (BATCH, 12) if per_token else BATCH).astype(np.float32)
    return latents, timestep, rng.standard_normal((BATCH, 5, CONFIG.text_dim)).astype(np.float32)


def _loss(model, params, *inputs):
    return jnp.mean(jnp.sin(3 * model.apply({"params": params}, *inputs)))


def _gradients(params, inputs, mesh=None, **fields):
    model = WanDiT(dataclasses.replace(CONFIG, **fields), mesh)
    step = jax.jit(jax.value_and_grad(lambda p, *x: _loss(model, p, *x)))
    value, gradients = jax.block_until_ready(step(params, *inputs))
    return float(value), jax.tree.map(lambda x: np.asarray(x, np.float32), gradients)


def _distance(one, other):
    """Largest of all tensors, relative to its norm."""
    pairs = zip(*map(jax.tree.leaves, (one, other)), strict=True)
    return max(np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in pairs)


@pytest.mark.parametrize("fields,per_token", [
    ({"remat": "offload"}, False), ({"chunk_tokens": 5}, False), ({"chunk_tokens": 7}, True),
    ({"chunk_tokens": 4, "remat": "offload"}, False),
], ids=str)  # fmt: skip
def test_in_float32_gradients_are_those_of_the_whole(params, fields, per_token):
    inputs = _inputs(per_token)
    expected, found = _gradients(params, inputs), _gradients(params, inputs, **fields)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert _distance(expected[1], found[1]) < 2e-6


@pytest.mark.parametrize("tokens,size,expected", [
    (75_600, 4096, (21, 3600)), (18_900, 4096, (5, 3780)), (8192, 4096, (2, 4096)), (12, 5, (3, 4)), (13, 5, (3, 5)),
])  # fmt: skip
def test_chunks_are_whole_rows_and_add_no_tokens_where_they_can(tokens, size, expected):
    count, each = chunks.cut(tokens, size)
    assert (count, each) == expected and each <= size and count * each >= tokens


@pytest.mark.parametrize("in_place", [False, True])
def test_tokens_that_fill_up_the_last_chunk_count_for_nothing(in_place):
    rng = np.random.default_rng(2)
    w, x, other = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 3), (2, 13, 3), (2, 13, 1)))

    def function(w, x, read, other, _):
        return jnp.sin(x + read @ w) + 1 / (1 + other**2)

    def loss(size, *of):
        out = chunks.over_tokens(function, size, *of, in_place=in_place)
        return jnp.sum(out**2), out

    gradient = jax.value_and_grad(loss, (1, 2, 3), has_aux=True)
    results = [gradient(size, w, x, other) for size in (0, 5)]
    assert chunks.cut(13, 5) == (3, 5)
    for one, many in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-5)


def test_what_is_rounded_on_its_way_to_the_host_costs_no_more_than_the_arithmetic(params):
    inputs = _inputs()
    exact = _gradients(params, inputs)[1]
    kept = _distance(exact, _gradients(params, inputs, dtype="bfloat16", remat="full")[1])
    moved = _distance(exact, _gradients(params, inputs, dtype="bfloat16", remat="offload", chunk_tokens=4)[1])
    assert 1e-3 < kept < 0.1 and moved < 1.5 * kept


def test_block_inputs_and_attention_wait_on_the_host(params, capsys):
    config = dataclasses.replace(CONFIG, remat="offload", dtype="bfloat16", attention="blockwise")
    shapes = rows.shapes(dit_rows(config), jnp.float32)
    inputs = [jax.ShapeDtypeStruct(np.shape(x), jnp.float32) for x in _inputs()]
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda p, *x: _loss(WanDiT(config), p, *x)))(shapes, *inputs))
    waiting = set(re.findall(r"(\w+)<host>(\[[\d,]*\])", jaxpr))
    tokens, heads = 12, BATCH * CONFIG.heads
    both = f"[2,{BATCH},{tokens},{CONFIG.width}]"  # layers
    assert waiting >= {("bf16", both), ("bf16", f"[2,{heads},1,{tokens},12]"), ("f32", f"[2,{heads},1,{tokens}]")}
    assert "f32" + both not in jaxpr  # no input stays beside


@pytest.fixture
def torus(monkeypatch):
    """Makes four devices along ``fsdp`` pass for two axes of a torus."""
    found = partition._torus_lengths
    monkeypatch.setattr(partition, "_torus_lengths",
                        lambda mesh, axis: (2, 2) if mesh.shape[axis] == 4 else found(mesh, axis))  # fmt: skip


def _traced(mesh, **fields):
    config = dataclasses.replace(CONFIG, dtype="bfloat16", **fields)
    shapes = rows.shapes(dit_rows(config), jnp.float32)
    inputs = [jax.ShapeDtypeStruct((4, *np.shape(x)[1:]), jnp.float32) for x in _inputs()]
    return str(jax.make_jaxpr(jax.grad(lambda p, *x: _loss(WanDiT(config, mesh), p, *x)))(shapes, *inputs))


def test_parameters_are_gathered_and_their_gradients_scattered_along_each_axis_of_a_torus(params, torus):
    # a head's size of its own: jax remembers what it traced for an equal model and mesh
    mesh, fields = partition.make_mesh({"fsdp": 4, "tensor": 2}), {"remat": "full", "eps": 2e-6}
    text = _traced(mesh, **fields)
    assert {"fsdp_0", "fsdp_1"} == set(re.findall(r"all_gather\[[^\]]*axis_name=\('(\w+)',\)", text, re.DOTALL))
    assert {"fsdp_0", "fsdp_1"} == set(re.findall(r"reduce_scatter\[[^\]]*axis_name=\('(\w+)',\)", text, re.DOTALL))
    latents, timestep, given = (np.concatenate([x, x]) for x in _inputs())
    table = dit_rows(CONFIG)
    placed = partition.shardings(mesh, rows.logical_axes(table), rows.shapes(table, jnp.float32))
    expected = _gradients(params, (latents, timestep, given), **fields)
    found = _gradients(jax.device_put(params, placed), (latents, timestep, given), mesh, **fields)
    assert found[0] == pytest.approx(expected[0], rel=1e-5) and _distance(expected[1], found[1]) < 1e-5


@pytest.mark.parametrize("given,expected", [("auto", "bf16"), ("float32", "f32")])
def test_gradients_of_matrices_are_summed_in_the_type_of_the_config(given, expected):
    text = _traced(partition.make_mesh({"fsdp": 4, "seq": 2}), remat="full", grad_reduce_dtype=given)
    sums = re.findall(r":(\w+)\[(\d+),(\d+)\]\{[^=\n]* = reduce_scatter\[", text)
    # the first of a matrix, whose two sums are over fsdp and seq; a modulation's table has six rows in float32
    assert {kind for kind, *size in sums if sorted(map(int, size)) in ([12, 48], [12, 64])} == {expected}


def test_gathered_parameters_are_not_kept_even_where_every_activation_is():
    width, ffn = CONFIG.width, CONFIG.ffn
    text = _traced(partition.make_mesh({"fsdp": 4, "seq": 2}), remat="none")
    kept = set(re.findall(r"bf16\[2,(\d+),(\d+)\]", text))  # of both layers
    assert not kept & {(str(width), str(width)), (str(width), str(ffn)), (str(ffn), str(width))}
    assert (str(width // 8), str(width)) in kept  # shards, in the compute dtype


def test_without_remat_what_is_kept_are_results_of_products_and_of_attention(capsys):
    config = dataclasses.replace(CONFIG, attention="blockwise", remat="none")
    params = rows.shapes(dit_rows(config), jnp.float32)
    jax.ad_checkpoint.print_saved_residuals(lambda params: _loss(WanDiT(config), params, *_inputs()), params)
    found = collections.Counter(re.findall(r"^f32\[(2(?:,\d+){3,})\] output of", capsys.readouterr().out, re.MULTILINE))
    assert found == {
        "2,2,12,48": 8,  # of both layers: the block's input, q, k, v and output of self-attention, cross-attention's q
        # and output, the feed-forward's output
        "2,2,12,64": 1,  # before its activation
        "2,2,5,48": 2,  # the text's k and v
        "2,8,1,12,12": 2, "2,8,1,12": 2,  # of both attentions by heads and blocks: result, statistics; no logits
        "2,1,6,48": 1, "2,2,4,6,4": 1,  # outside the stack: of time, and the velocity
    }  # fmt: skip


@pytest.mark.parametrize("attention", ["plain", "blockwise"])
def test_without_remat_no_product_is_computed_twice(monkeypatch, attention):
    def products(eps):  # of its own: jax remembers what it traced for an equal model
        config = dataclasses.replace(CONFIG, attention=attention, remat="none", eps=eps)
        gradients = jax.grad(lambda params: _loss(WanDiT(config), params, *_inputs()))
        return str(jax.make_jaxpr(gradients)(rows.shapes(dit_rows(config), jnp.float32))).count("dot_general[")

    found = products(3e-6)
    monkeypatch.setitem(stack._POLICIES, "none", jax.checkpoint_policies.everything_saveable)
    assert found == products(4e-6)
    monkeypatch.setitem(stack._POLICIES, "none", jax.checkpoint_policies.nothing_saveable)
    assert found < products(5e-6)
