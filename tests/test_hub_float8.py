"""8-bit files of ComfyUI: read times their scale, written so that reading and writing again changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.test_hub import DIT, random_params
from wanjax import hub
from wanjax.hub_float8 import ScaledFloat8
from wanjax.models.rows.dit import dit_rows
from wanjax.weight_files import open_weights

F8 = jnp.float8_e4m3fn
FILE = "diffusion_model.safetensors"


def stored_in(file):
    reader = open_weights(file)
    return {name: reader[name] for name in reader}


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda leaf: (0.05 * leaf).astype(jnp.bfloat16), random_params(dit_rows(DIT.config)))


@pytest.fixture(scope="module")
def scaled(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaled")
    return folder, hub.save_dit(folder, DIT, params, layout="comfyui", fp8=True)


def test_the_matrices_of_the_blocks_are_stored_in_eight_bits(scaled, params):
    tensors = stored_in(scaled[0] / FILE)
    eight = {name for name, tensor in tensors.items() if tensor.dtype == F8}
    layers = [f"{part}.{x}" for part in ("self_attn", "cross_attn") for x in "qkvo"] + ["ffn.0", "ffn.2"]
    assert eight == {"scaled_fp8", *(f"blocks.{i}.{layer}.weight" for i in range(3) for layer in layers)}
    for name in eight - {"scaled_fp8"}:
        scale = tensors[name.removesuffix("weight") + "scale_weight"]
        assert (scale.shape, scale.dtype) == ((), np.float32)
    exact = np.asarray(params["blocks"]["ffn"]["in"]["kernel"][1].T, np.float32)
    scale = tensors["blocks.1.ffn.0.scale_weight"]
    assert scale == np.abs(exact).max() / np.float32(448)
    found = tensors["blocks.1.ffn.0.weight"].astype(np.float32) * scale
    # half a step: 2^-4 of a normal number, 2^-10 of the scale below
    assert (np.abs(found - exact) <= np.maximum(np.abs(exact) * 2**-4, scale * 2**-10)).all()
    np.testing.assert_array_equal(tensors["head.head.weight"], params["head"]["projection"]["kernel"].T)


def test_the_error_of_eight_bits_is_said(scaled, params, tmp_path):
    _, read = hub.load_dit(scaled[0], dtype="float32")
    parts = [(read["blocks"][a][b]["kernel"], np.asarray(params["blocks"][a][b]["kernel"], np.float32))
             for a, names in (("self_attention", "qkvo"), ("cross_attention", "qkvo"), ("ffn", ("in", "out")))
             for b in names]
    error = sum(np.square(np.float64(a) - b).sum() for a, b in parts)
    energy = sum(np.square(np.float64(b)).sum() for _, b in parts)
    assert scaled[1] == pytest.approx(np.sqrt(error / energy), rel=1e-5)
    assert 0.02 < scaled[1] < 0.03  # a uniform error of half a step of 3 mantissa bits
    assert hub.save_dit(tmp_path, DIT, params, layout="comfyui") == 0.0
    with pytest.raises(ValueError, match="fp8 is of the layout 'comfyui' alone; layout 'official'"):
        hub.save_dit(tmp_path, DIT, params, layout="official", fp8=True)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float32", "float16"])
def test_reading_and_writing_again_gives_the_same_bytes(scaled, tmp_path, dtype):
    model, read = hub.load_dit(scaled[0], dtype=dtype)
    assert model.config.dtype == (dtype or "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(read)} == {jnp.dtype(dtype or "bfloat16")}
    hub.save_dit(tmp_path, model, read, layout="comfyui", fp8=True)
    first, second = stored_in(scaled[0] / FILE), stored_in(tmp_path / FILE)
    assert first.keys() == second.keys()
    for name in first:
        if first[name].dtype == F8 or name.endswith("scale_weight"):
            assert first[name].tobytes() == second[name].tobytes(), name
    if dtype in (None, "bfloat16"):
        assert (tmp_path / FILE).read_bytes() == (scaled[0] / FILE).read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_writing_is_stable_from_the_first_pass_at_any_magnitude(dtype):
    rng = np.random.default_rng(1)
    for size in (1e-30, 1e-3, 1.0, 7.3e4):
        first = (rng.standard_normal((40, 50)) * size).astype(jnp.dtype(dtype))
        passes = []
        for _ in range(2):
            tensors = dict(ScaledFloat8(["x.weight"])([("x.weight", first)]))
            passes.append((tensors["x.weight"].tobytes(), tensors["x.scale_weight"].tobytes()))
            first = (tensors["x.weight"].astype(np.float32) * tensors["x.scale_weight"]).astype(jnp.dtype(dtype))
        assert passes[0] == passes[1]


def test_zero_and_infinite_matrices_have_a_defined_result():
    tensors = dict(ScaledFloat8(["x.weight"])([("x.weight", np.zeros((2, 2), np.float32))]))
    assert tensors["x.scale_weight"] == 1 and not tensors["x.weight"].astype(np.float32).any()
    with pytest.raises(ValueError, match=r"x\.weight has values that are not finite"):
        dict(ScaledFloat8(["x.weight"])([("x.weight", np.array([[np.inf]], np.float32))]))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_file_of_comfyui_opens_prefixed_or_not(scaled, tmp_path, prefix):
    tensors = stored_in(scaled[0] / FILE)
    tensors |= {name.replace("scale_weight", "scale_input"): np.asarray(3, np.float32)  # of activations: not used
                for name in tensors if name.endswith("scale_weight")}
    metadata = open_weights(scaled[0] / FILE).metadata
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "x.safetensors", metadata)
    found, expected = (hub.load_dit(path)[1] for path in (tmp_path / "x.safetensors", scaled[0]))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert found["blocks"]["ffn"]["in"]["kernel"].dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", [F8, jnp.float8_e5m2])
def test_a_plain_cast_to_eight_bits_is_read_as_it_is(params, tmp_path, kind):
    hub.save_dit(tmp_path, DIT, params, layout="comfyui")
    file = tmp_path / FILE
    tensors = {name: tensor.astype(kind) for name, tensor in load_file(file).items()}
    save_file(tensors, file, open_weights(file).metadata)
    model, found = hub.load_dit(tmp_path)
    assert model.config.param_dtype == "bfloat16"
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(kind).astype(jnp.bfloat16)), found, params)


def test_scales_that_do_not_fit_are_refused_by_name(scaled, tmp_path):
    tensors, file = stored_in(scaled[0] / FILE), tmp_path / "x.safetensors"
    metadata = open_weights(scaled[0] / FILE).metadata
    name, scale = "blocks.1.ffn.0.weight", "blocks.1.ffn.0.scale_weight"
    for change, message in (
        ({scale: np.ones((56, 1), np.float32)}, rf"{scale} has shape \(56, 1\)"),
        ({name: tensors[name].astype(np.float32)}, f"{scale} scales {name}, expected 8-bit floats, found float32"),
        ({"blocks.1.ffn.7.scale_weight": tensors[scale]}, r"scales blocks\.1\.ffn\.7\.weight.*found no such tensor"),
        ({"blocks.1.ffn.0.weight_scale": tensors[scale]}, r"unexpected blocks\.1\.ffn\.0\.weight_scale"),
    ):
        save_file({**tensors, **change}, file, metadata)
        with pytest.raises(ValueError, match=message):
            hub.load_dit(file)


def test_layers_stored_in_different_types_are_read_in_the_type_that_is_asked(scaled, tmp_path):
    tensors, file = stored_in(scaled[0] / FILE), tmp_path / "x.safetensors"
    del tensors["blocks.1.ffn.0.scale_weight"]
    tensors["blocks.1.ffn.0.weight"] = tensors["blocks.1.ffn.0.weight"].astype(np.float32) + 2**-20
    save_file(tensors, file, open_weights(scaled[0] / FILE).metadata)
    with pytest.raises(ValueError, match=r"ffn\.0\.weight is stored as bfloat16 and float32 in different layers"):
        hub.load_dit(file)
    found = hub.load_dit(file, dtype="float32")[1]["blocks"]["ffn"]["in"]["kernel"][1]
    np.testing.assert_array_equal(found, tensors["blocks.1.ffn.0.weight"].T)
