"""LoRAs beside the weights do what merged ones do, and leave the weights alone.

The reference is `wanjax.lora.merge`, which tests/test_lora.py compares with the formula.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.parity import dit_case
from wanjax import lora, lora_factors, offload, partition
from wanjax.models import lora as changes
from wanjax.models import rows
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows.dit import dit_rows

CONFIG = DiTConfig(width=48, heads=4, layers=3, ffn=64, in_channels=4, out_channels=4, freq_dim=24, text_dim=20)
ROWS = dit_rows(CONFIG)
MESH = {"fsdp": 2, "seq": 2, "tensor": 2}
RNG = np.random.default_rng(7)
INPUTS = (RNG.standard_normal((4, 2, 4, 4, 4)).astype(np.float32), RNG.uniform(0, 1000, 4).astype(np.float32),
          RNG.standard_normal((4, 5, 20)).astype(np.float32))  # fmt: skip
Q, FFN = ("blocks", "self_attention", "q", "kernel"), ("blocks", "ffn", "out", "kernel")


def normal(*shape):
    return (0.3 * RNG.standard_normal(shape)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    return dit_case.params(CONFIG, seed=5)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two LoRAs: different ranks in one tensor and between layers, whole deltas, everything outside the stack."""
    folder = tmp_path_factory.mktemp("loras")
    one = {"blocks.0.self_attn.q.lora_A.weight": normal(2, 48), "blocks.0.self_attn.q.lora_B.weight": normal(48, 2),
           "blocks.0.self_attn.q.alpha": np.array([3], np.float32), "blocks.2.ffn.2.lora_A.weight": normal(4, 64),
           "blocks.2.ffn.2.lora_B.weight": normal(48, 4), "blocks.2.ffn.2.lora_B.bias": normal(48),
           "blocks.1.self_attn.q.diff": normal(48, 48), "blocks.1.norm3.diff": normal(48),
           "blocks.1.modulation.diff": normal(1, 6, 48), "patch_embedding.lora_A.weight": normal(2, 4, 1, 2, 2),
           "patch_embedding.lora_B.weight": normal(48, 2, 1, 1, 1), "patch_embedding.diff_b": normal(48)}  # fmt: skip
    two = {"blocks.0.self_attn.q.lora_A.weight": normal(3, 48), "blocks.0.self_attn.q.lora_B.weight": normal(48, 3),
           "blocks.2.self_attn.q.lora_A.weight": normal(1, 48), "blocks.2.self_attn.q.lora_B.weight": normal(48, 1),
           "text_embedding.2.lora_A.weight": normal(2, 48), "text_embedding.2.lora_B.weight": normal(48, 2),
           "head.head.diff": normal(16, 48), "head.modulation.diff": normal(1, 2, 48)}  # fmt: skip
    paths = folder / "one.safetensors", folder / "two.safetensors"
    for path, tensors in zip(paths, (one, two), strict=True):
        save_file(tensors, path)
    return [(paths[0], 0.7), (paths[1], -1.5)]


def place(params, mesh):
    if mesh is None:
        return jax.tree.map(jnp.asarray, params)
    return jax.device_put(params, partition.shardings(mesh, rows.logical_axes(ROWS), rows.shapes(ROWS, np.float32)))


def run(model, variables, **options):
    apply = model.apply_with_taps if options else model.apply
    compiled = jax.jit(functools.partial(apply, **options))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.block_until_ready(compiled(variables, *INPUTS)))]


def all_changed(params, tree):
    """Every parameter with its change, the stacked ones too: whole deltas and, by the formula, factors."""
    outside = {name: leaf for name, leaf in params.items() if name != "blocks"}
    rest = {name: change for name, change in tree.items() if name != "blocks"}
    blocks = jax.vmap(changes.changed)(params["blocks"], tree.get("blocks", {}))
    summed, low = {**changes.changed(outside, rest), "blocks": blocks}, changes.factors(tree)

    def with_factors(row):
        leaf, own = rows.pick(summed, row), low
        for key in row.path:
            own = own.get(key, {})
        if not own:
            return leaf
        down, up = (np.asarray(own[part], np.float32) for part in ("down", "up"))
        flat = down.reshape(*(down.shape[:1] if row.stacked else ()), -1, down.shape[-1])
        return leaf.astype(jnp.float32) + (flat @ up).reshape(leaf.shape)

    return rows.tree(ROWS, with_factors)


def test_every_parameter_changes_as_merging_changes_it(params, files):
    tree, records = lora_factors.factors_of_files(ROWS, files)
    merged, merged_records = lora.merge_files(place(params, None), ROWS, files)
    assert records == merged_records
    assert rows.pick(tree, ROWS[0])["down"].shape == (1, 2, 2, 4, 2)
    assert {part: array.shape for part, array in tree["blocks"]["self_attention"]["q"]["kernel"].items()} == {
        "down": (3, 48, 5), "up": (3, 5, 48), "whole": (3, 48, 48)}  # ranks 2 + 3, 0, 1
    found, count = all_changed(place(params, None), tree), 0
    for row in ROWS:
        before, after, expected = (np.asarray(rows.pick(node, row)) for node in (params, found, merged))
        np.testing.assert_allclose(after, expected, rtol=0, atol=1e-6, err_msg=str(row.path))
        count += np.abs(expected - before).max() > 0.05
    assert count == 10 == len(jax.tree.leaves(tree, is_leaf=lambda node: "up" in node or "whole" in node))


@pytest.fixture(scope="module")
def with_merged(params, files):
    """Velocity and states without the LoRAs and with them merged."""
    merged, _ = lora.merge_files(place(params, None), ROWS, files)
    return [run(WanDiT(CONFIG), {"params": weights}, taps=(1, 3)) for weights in (params, merged)]


@pytest.mark.parametrize("sizes", [None, MESH], ids=str)
def test_the_velocity_is_that_of_merged_weights_whatever_holds_the_weights(params, files, with_merged, sizes):
    mesh = None if sizes is None else partition.make_mesh(sizes)
    model, taps = WanDiT(CONFIG, mesh), {"taps": (1, 3)}
    tree, _ = lora_factors.factors_of_files(ROWS, files, mesh=mesh)
    if mesh is not None:  # each device has its part of the factors
        assert tree["blocks"]["self_attention"]["q"]["kernel"]["down"].addressable_shards[0].data.shape == (3, 12, 5)
        assert tree["blocks"]["self_attention"]["q"]["kernel"]["up"].addressable_shards[0].data.shape == (3, 5, 24)
    resident = run(model, {"params": place(params, mesh), "lora": tree}, **taps)
    streamed = run(model, {"params": offload.to_host(params, ROWS, mesh=mesh), "lora": tree}, **taps)
    for one, other, plain, merged in zip(resident, streamed, *with_merged, strict=True):
        np.testing.assert_allclose(one, merged, rtol=0, atol=1e-6 * np.abs(merged).max())
        np.testing.assert_array_equal(other, one)
        assert np.abs(plain - merged).max() > 0.1 * np.abs(merged).max()


def test_no_lora_and_one_of_no_weight_leave_every_bit(params, files):
    model, variables = WanDiT(CONFIG), {"params": place(params, None)}
    (expected,) = run(model, variables)
    for chosen in ([], [(files[0][0], 0.0)]):
        (found,) = run(model, variables | {"lora": lora_factors.factors_of_files(ROWS, chosen)[0]})
        np.testing.assert_array_equal(found, expected)


def test_another_weight_is_the_same_program(params, files):
    model, variables = WanDiT(CONFIG), {"params": place(params, None)}
    apply, found = jax.jit(model.apply), []
    for weight in (0.5, 2.0):
        tree, _ = lora_factors.factors_of_files(ROWS, [(files[0][0], weight), files[1]])
        found.append(np.asarray(apply(variables | {"lora": tree}, *INPUTS)))
    assert apply._cache_size() == 1
    assert np.abs(found[1] - found[0]).max() > 0.01


def test_narrow_weights_are_summed_in_float32_and_rounded_by_the_compute_dtype_alone(params, files):
    """Merging rounds vectors and tables too; matrices are rounded once either way."""
    narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    tree, _ = lora_factors.factors_of_files(ROWS, files)
    exact, _ = lora.merge_files(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow), ROWS, files)
    merged, _ = lora.merge_files(narrow, ROWS, files)
    found = all_changed(narrow, tree)
    changing = {row.path for row in ROWS if row.path[-1] in ("kernel", "bias", "scale", "modulation")}
    for row in ROWS:
        after, wide, rounded, before = (np.asarray(rows.pick(node, row)).astype(np.float32)
                                        for node in (found, exact, merged, narrow))  # fmt: skip
        if row.path in changing and np.abs(wide - before).max() > 0.05:
            assert rows.pick(found, row).dtype == jnp.float32
            np.testing.assert_allclose(after, wide, rtol=0, atol=1e-6, err_msg=str(row.path))
            assert np.abs(rounded - wide).max() > 1e-4
            same = np.asarray(jnp.asarray(after, jnp.bfloat16), np.float32) == rounded
            assert same.mean() > 0.999, row.path  # but for sums within a float32 rounding of a tie
        else:
            np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("sizes,remat", [(None, "none"), (MESH, "full")], ids=str)
def test_gradients_of_factors_are_those_of_the_merged_weights_by_the_chain_rule(params, files, sizes, remat):
    mesh = None if sizes is None else partition.make_mesh(sizes)
    cotangent = np.random.default_rng(8).standard_normal(INPUTS[0].shape).astype(np.float32)

    def gradient(model, argument, *trees):
        def loss(*trees):
            return jnp.sum(model.apply(dict(zip(("params", "lora"), trees, strict=False)), *INPUTS) * cotangent)

        compiled = jax.jit(jax.grad(loss, argnums=argument))
        return jax.tree.map(np.asarray, jax.block_until_ready(compiled(*trees)))

    merged, _ = lora.merge_files(place(params, None), ROWS, files)
    weights = gradient(WanDiT(CONFIG), 0, merged)
    tree, _ = lora_factors.factors_of_files(ROWS, files, mesh=mesh)
    found = gradient(WanDiT(dataclasses.replace(CONFIG, remat=remat), mesh), 1, place(params, mesh), tree)
    for path in (Q, FFN, ("text_embedding", "out", "kernel")):
        own, parts, wanted = (functools.reduce(lambda node, key: node[key], path, start)
                              for start in (weights, tree, found))  # fmt: skip
        down, up = (np.asarray(parts[part]) for part in ("down", "up"))
        expected = {"down": own @ np.swapaxes(up, -1, -2), "up": np.swapaxes(down, -1, -2) @ own}
        for part, value in expected.items():
            assert np.linalg.norm(value) > 0
            assert np.linalg.norm(wanted[part] - value) <= 2e-5 * np.linalg.norm(value), (path, part)


def test_a_tree_that_does_not_fit_is_refused_with_all_that_is_wrong(params):
    down, up = np.zeros((3, 48, 2), np.float32), np.zeros((3, 2, 48), np.float32)
    tree = {
        "blocks": {"self_attention": {"q": {"kernel": {"down": down, "up": up}, "bias": {"down": down, "up": up}},
                                      "k": {"kernel": {"down": down}}, "v": {"kernel": {"down": down[:, 1:], "up": up}},
                                      "o": {"kernel": {"down": down, "up": up[:, 1:]}}, "norm_q": {"whole": up}},
                   "ffn": np.zeros(3), "modulation": {"delta": up}},
        "header": {"modulation": {"whole": up}},
    }  # fmt: skip
    expected = [
        "blocks/self_attention/q/bias: not a matrix, has no factors",
        "blocks/self_attention/k/kernel: expected a dict of down and up, of whole, or of all three",
        "blocks/self_attention/v/kernel/down: shape (3, 47, 2), expected (3, 48, 2)",
        "blocks/self_attention/o/kernel/up: shape (3, 1, 48), expected (3, 2, 48)",
        "blocks/self_attention/norm_q/whole: shape (3, 2, 48), expected (3, 48)",
        "blocks/ffn: expected a dict",
        "blocks/modulation: expected a dict of down and up, of whole, or of all three",
        "header: no such parameter",
    ]
    with pytest.raises(ValueError, match="the LoRA does not fit the parameters") as error:
        WanDiT(CONFIG).apply({"params": params, "lora": tree}, *INPUTS)
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == expected
    with pytest.raises(ValueError, match=r"variables \['loras'\]: expected params and, if any, lora"):
        WanDiT(CONFIG).apply({"params": params, "loras": {}}, *INPUTS)


def test_a_lora_of_another_network_or_of_no_finite_weight_is_refused(files):
    with pytest.raises(ValueError, match="weight nan"):
        lora_factors.factors_of_files(ROWS, [(files[0][0], float("nan"))])
    with pytest.raises(ValueError, match="read for another network"):
        lora_factors.factors(ROWS[:2], [(lora.read_lora(files[0][0], ROWS), 1.0)])
