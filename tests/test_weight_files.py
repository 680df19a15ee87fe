"""Files of weights: those of torch.save are read and never run; what is damaged is refused by name."""

import json
import os
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from tests import torch_writing
from wanjax.weight_files import TensorSpec, open_weights, write_weights

RNG = np.random.default_rng(0)
TENSORS = {
    "a.weight": RNG.standard_normal((3, 5)).astype(jnp.bfloat16),
    "a.bias": RNG.standard_normal(5).astype(np.float16),
    "b": RNG.standard_normal((2, 3, 4)).astype(np.float32),
    "scalar": np.asarray(2.5, np.float32),
    "none": np.zeros((0, 4), np.float32),
}


def test_tensors_of_torch_save_come_back_bit_for_bit(tmp_path):
    torch_writing.save(TENSORS, tmp_path / "x.pth")
    for path in (tmp_path, tmp_path / "x.pth"):
        reader = open_weights(path)
        assert list(reader) == list(TENSORS) and reader.metadata == {}
        for name, expected in TENSORS.items():
            assert (reader.shape_of(name), reader.dtype_of(name)) == (expected.shape, expected.dtype.name)
            found = reader[name]
            assert found.dtype == expected.dtype and found.flags.owndata and found.flags.c_contiguous
            np.testing.assert_array_equal(found, expected)


def test_strides_offsets_and_shared_storages_are_respected(tmp_path):
    stored = np.arange(24, dtype=np.float32)
    views = {
        "whole": ((4, 6), (6, 1), 0, stored.reshape(4, 6)),
        "transposed": ((6, 4), (1, 6), 0, stored.reshape(4, 6).T),
        "part": ((2, 3), (6, 2), 7, stored.reshape(4, 6)[1:3, 1::2]),
        "repeated": ((3, 2), (0, 1), 22, np.broadcast_to(stored[22:], (3, 2))),
    }
    items = {name: torch_writing.tensor("0", "float32", 24, shape, strides, offset)
             for name, (shape, strides, offset, _) in views.items()}
    torch_writing.write(tmp_path / "x.pth", torch_writing.dictionary(items), {"0": stored.tobytes()})
    reader = open_weights(tmp_path)
    for name, (*_, expected) in views.items():
        np.testing.assert_array_equal(reader[name], expected)


@pytest.mark.parametrize("protocol", range(6))
def test_what_a_pickle_would_run_is_named_and_not_run(tmp_path, protocol):
    mark = tmp_path / "it_ran"
    program = pickle.dumps({"a.weight": torch_writing.Runs(os.mkdir, str(mark))}, protocol=protocol)
    torch_writing.write(tmp_path / "x.pth", program, {})
    with pytest.raises(ValueError, match=r"x\.pth: its pickle (asks for posix\.mkdir|has the instruction)"):
        open_weights(tmp_path)
    assert not mark.exists()
    pickle.loads(program)
    assert mark.exists()  # so the file was one that runs


@pytest.mark.parametrize(("module", "name"), [
    ("builtins", "eval"), ("os", "system"), ("torch", "load"), ("torch.storage", "_load_from_bytes"),
    ("numpy", "memmap"), ("collections", "OrderedDict.fromkeys"), ("wanjax.torch_files", "TorchFile"),
    ("torch", "FloatStorage.__class__"),
])  # fmt: skip
def test_no_other_name_is_looked_up(tmp_path, module, name):
    call = torch_writing.named(module, name) + b"(" + torch_writing.text("x") + b"tR"
    program = torch_writing.dictionary({"a": call})
    torch_writing.write(tmp_path / "x.pth", program, {})
    with pytest.raises(ValueError, match=f"asks for {module}.{name}"):
        open_weights(tmp_path)


@pytest.mark.parametrize(("value", "message"), [
    (b"\x82\x01", "instruction EXT1"),
    (b"\x8c\x01a\x8c\x01b\x93", "asks for a.b"),
    (b"(ios\nsystem\n", "instruction INST"),
    (torch_writing.named("collections", "OrderedDict") + b")\x81", "instruction NEWOBJ"),
    (b"r\xff\xff\xff\x7f", "numbers more values than it has bytes"),
    (torch_writing.text("text"), "'a' is a str"),
    (b"(l", "instruction LIST"),
    (b"}", "'a' is a dict"),
    (b"NQ", "refers to None, which is not a storage"),
    (torch_writing.named("torch._utils", "_rebuild_tensor_v2") + b")R", "missing 6 required"),
    (torch_writing.named("torch._utils", "_rebuild_tensor_v2")
     + b"N}" + torch_writing.text("__call__") + torch_writing.number(1) + b"s\x86b", "__call__"),
    (torch_writing.tensor("0", "float32", 6, (2, 3), (3,)), "tensor a is not described"),
    (torch_writing.tensor("0", "float32", 6, (2, -3), (3, 1)), "tensor a is not described"),
    (torch_writing.tensor("0", "float32", 6, (2, 3), (3, 1), -1), "tensor a is not described"),
    (torch_writing.tensor("0", "float32", 6, (2, 3), (4, 1)), "reaches element 6 of a storage of 6"),
    (torch_writing.tensor("0", "float32", 6, (2, 3), (3, 1), 1), "reaches element 6 of a storage of 6"),
    (torch_writing.tensor("0", "float32", 7, (2, 3), (3, 1)), "needs 28 bytes of data/0, the archive has 24"),
    (torch_writing.tensor("../0", "float32", 6, (2, 3), (3, 1)), r"data/\.\./0, the archive has none"),
])  # fmt: skip
def test_what_is_no_tensor_in_its_storage_is_refused(tmp_path, value, message):
    torch_writing.write(tmp_path / "x.pth", torch_writing.dictionary({"a": value}), {"0": bytes(24)})
    with pytest.raises(ValueError, match=rf"x\.pth: .*{message}"):
        open_weights(tmp_path)


def test_a_damaged_or_foreign_file_of_torch_is_refused_by_name(tmp_path):
    file = tmp_path / "x.pth"
    torch_writing.save(TENSORS, file)
    whole = file.read_bytes()
    for length in (10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x\.pth: the archive is cut short or damaged"):
            open_weights(file)
    start = whole.index(TENSORS["b"].tobytes())
    file.write_bytes(whole[:start] + bytes([whole[start] ^ 1]) + whole[start + 1 :])
    with pytest.raises(ValueError, match=r"x\.pth: the bytes of tensor b are damaged"):
        open_weights(file)["b"]
    start = whole.index(b"_rebuild_tensor_v2")
    file.write_bytes(whole[:start] + b"?" + whole[start + 1 :])
    with pytest.raises(ValueError, match=r"x\.pth.*data\.pkl"):
        open_weights(file)
    file.write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(ValueError, match=r"bare pickle.*write it anew with torch\.save"):
        open_weights(file)
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.pth: not a file of torch\.save"):
        open_weights(file)
    torch_writing.write(file, torch_writing.dictionary({}), {}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is compressed"):
        open_weights(file)
    torch_writing.save({"a": np.zeros(3, np.int64)}, file)
    with pytest.raises(ValueError, match="tensor a is stored as int64; expected float32"):
        open_weights(file).dtype_of("a")


def test_safetensors_go_before_a_pth_and_several_pth_are_refused(tmp_path):
    torch_writing.save({"from_torch": TENSORS["b"]}, tmp_path / "a.pth")
    assert list(open_weights(tmp_path)) == ["from_torch"]
    torch_writing.save({"from_torch": TENSORS["b"]}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"several sets of weights.*a\.pth, b\.pth"):
        open_weights(tmp_path)
    save_file({"safe": TENSORS["b"]}, tmp_path / "model.safetensors")
    assert list(open_weights(tmp_path)) == ["safe"]


def test_a_truncated_file_and_a_corrupted_header_of_safetensors_are_refused_by_name(tmp_path):
    file = tmp_path / "x.safetensors"
    save_file(TENSORS, file)
    whole = file.read_bytes()
    broken = {"cut short": whole[:-1], "cut in the header": whole[:40], "too long": whole + b"\0",
              "length": b"\xff" * 8 + whole[8:], "no JSON": whole[:8] + b"[" + whole[9:],
              "shape": whole.replace(b'"shape":[3,5]', b'"shape":[3,6]'), "empty": b""}
    for what, content in broken.items():
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.safetensors is not a readable safetensors file"):
            open_weights(file)
            pytest.fail(what)


def test_eight_bit_floats_are_read_as_they_are(tmp_path):
    every = np.arange(256, dtype=np.uint8)
    tensors = {"b": TENSORS["b"], "e4m3": every.view(jnp.float8_e4m3fn).reshape(2, 128),
               "e5m2": every.view(jnp.float8_e5m2)}
    save_file(tensors, tmp_path / "x.safetensors")
    reader = open_weights(tmp_path)
    for name in tensors:
        found = reader[name]
        assert (reader.dtype_of(name), found.dtype, found.shape) == (tensors[name].dtype.name, tensors[name].dtype,
                                                                     tensors[name].shape)
        np.testing.assert_array_equal(found.view(np.uint8), tensors[name].view(np.uint8))


def specs_of(tensors):
    return {name: TensorSpec(tensor.shape, tensor.dtype.name) for name, tensor in tensors.items()}


def test_tensors_are_written_in_any_order_each_at_a_multiple_of_its_elements_size(tmp_path):
    tensors = {"odd": np.ones(3, jnp.float8_e4m3fn), "b": np.arange(3, dtype=jnp.bfloat16), **TENSORS,
               "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T}  # fmt: skip
    write_weights(tmp_path, specs_of(tensors), reversed(tensors.items()), {"a": 1}, stem="x")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "x.safetensors"]
    raw = (tmp_path / "x.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    assert header.pop("__metadata__") == {"format": "pt"}  # without it diffusers and transformers refuse the file
    reader = open_weights(tmp_path)
    assert set(reader) == set(tensors)
    for name, tensor in tensors.items():
        assert (start + header[name]["data_offsets"][0]) % tensor.itemsize == 0
        assert reader[name].dtype == tensor.dtype and reader[name].tobytes() == tensor.tobytes()
    with safe_open(tmp_path / "x.safetensors", "np") as theirs:  # numpy knows no 8-bit floats
        assert all(theirs.get_tensor(name).tobytes() == tensors[name].tobytes() for name in {*tensors} - {"odd"})


def test_what_does_not_match_its_plan_is_not_written(tmp_path):
    specs = specs_of(TENSORS)
    twice = [*TENSORS.items(), ("b", TENSORS["b"])]
    for tensors, message in (
        ({**TENSORS, "more": np.zeros(1)}.items(), "tensor more .*: expected no such tensor"),
        ({**TENSORS, "b": np.zeros((2, 3, 5), np.float32)}.items(), r"tensor b \(2, 3, 5\)"),
        (list(TENSORS.items())[1:], "1 tensors did not come, the first is a.weight"),
        (twice, "tensor b .*or only once"),
    ):
        with pytest.raises(ValueError, match=message):
            write_weights(tmp_path, specs, tensors, {"a": 1}, stem="x")
        assert not list(tmp_path.iterdir())


def test_only_what_is_looked_at_is_read_from_a_file(tmp_path):
    save_file({"a": np.arange(12, dtype=np.float32).reshape(3, 4)}, tmp_path / "x.safetensors")
    reader = open_weights(tmp_path)
    part = reader.read("a", lambda stored: stored.T[1:3])
    assert not part.flags.owndata and not part.flags.writeable  # a view of the mapped file
    np.testing.assert_array_equal(part, [[1, 5, 9], [2, 6, 10]])
    assert reader["a"].flags.owndata and reader["a"].flags.writeable
