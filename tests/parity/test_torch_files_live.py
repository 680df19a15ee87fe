"""Files that PyTorch itself wrote."""

import resource
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from tests.test_hub import UMT5, VAE, random_params
from wanjax import hub
from wanjax.models import rows
from wanjax.models.rows.umt5 import umt5_rows
from wanjax.models.rows.vae import vae_rows
from wanjax.pth_writing import write_pth
from wanjax.weight_files import open_weights


def as_bits(tensor):
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.itemsize]).numpy()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_tensor_of_torch_save_has_its_bits(tmp_path, protocol):
    network = torch.nn.Sequential(torch.nn.Conv3d(3, 4, (3, 1, 2)), torch.nn.LayerNorm(5), torch.nn.Embedding(7, 2))
    whole = torch.randn(6, 8)
    state = network.state_dict()  # an OrderedDict with a _metadata attribute
    state |= {"parameter": torch.nn.Parameter(torch.randn(3)), "t": whole.t(), "part": whole[1:4, ::3],
              "repeated": torch.randn(1, 4).expand(3, 4), "half": torch.randn(5).half(), "scalar": torch.tensor(2.0),
              "bf16": torch.randn(4, 4).bfloat16(), "none": torch.zeros(0, 3)}  # fmt: skip
    torch.save(state, tmp_path / "x.pth", pickle_protocol=protocol)
    reader = open_weights(tmp_path)
    assert list(reader) == list(state)
    for name, tensor in state.items():
        found = reader[name]
        assert f"torch.{reader.dtype_of(name)}" == str(tensor.dtype) and reader.shape_of(name) == tuple(tensor.shape)
        bits = found.view({1: np.uint8, 2: np.int16, 4: np.int32}[found.itemsize])
        np.testing.assert_array_equal(bits, as_bits(tensor.detach().contiguous()))


def test_what_is_not_a_state_dict_is_refused(tmp_path):
    file = tmp_path / "x.pth"
    torch.save(torch.nn.Linear(2, 2), file)
    with pytest.raises(ValueError, match=r"asks for torch\.nn\.modules\.linear\.Linear|has the instruction"):
        open_weights(file)
    torch.save({"model": {"a": torch.zeros(2)}}, file)
    with pytest.raises(ValueError, match="'model' is a dict"):
        open_weights(file)
    torch.save({"a": torch.zeros(2)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="bare pickle"):
        open_weights(file)


@pytest.mark.parametrize("network", [VAE, UMT5], ids=["codec", "text encoder"])
def test_official_networks_saved_by_torch_open(tmp_path, network):
    table, load = {VAE: (vae_rows(VAE.config), hub.load_vae), UMT5: (umt5_rows(UMT5.config), hub.load_text_encoder)}[
        network
    ]
    tensors = rows.export_tensors(table, random_params(table), "official")
    torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, tmp_path / "x.pth")
    _, params = load(tmp_path / "x.pth")
    found = rows.export_tensors(table, params, "official")
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)


def test_what_is_written_is_read_by_torch_and_here_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal((3, 4, 5)).astype(jnp.dtype(name)) for name in hub.DTYPES}
    tensors |= {
        "transposed": tensors["bfloat16"].T, "every other": tensors["float32"][:, ::2],
        "backwards": np.arange(3, dtype=np.float32)[::-1], "scalar": np.asarray(2.5, jnp.bfloat16),
        "none": np.zeros((0, 3), np.float32),
        "special": np.array([0x7F81, 0xFFC1, 0x8000, 1], np.uint16).view(jnp.bfloat16),  # NaNs, -0, denormal
    }  # fmt: skip
    tensors["float32"].flags.writeable = False  # as arrays of JAX are
    file = tmp_path / "new" / "x.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_pth(file, tensors.items())
    loaded, reader = torch.load(file, weights_only=True), open_weights(file)
    assert list(loaded) == list(reader) == list(tensors)
    for name, array in tensors.items():
        assert str(loaded[name].dtype) == f"torch.{reader.dtype_of(name)}" == f"torch.{array.dtype.name}"
        assert tuple(loaded[name].shape) == reader.shape_of(name) == array.shape
        bits = {2: np.int16, 4: np.int32}[array.itemsize]
        for found in (as_bits(loaded[name]), reader[name].view(bits)):
            np.testing.assert_array_equal(found, np.asarray(array, order="C").view(bits))
    again = tmp_path / "y.pth"
    write_pth(again, iter(tensors.items()))
    assert again.read_bytes() == file.read_bytes()  # neither the name nor the time is in it


def test_a_pth_that_cannot_be_written_leaves_what_was_there(tmp_path):
    file, array = tmp_path / "x.pth", np.ones(3, np.float32)
    write_pth(file, [("a", array)])
    before = file.read_bytes()
    for tensors, message in (([("a", array)] * 2, "two tensors are called a"),
                             ([("a", array.astype(np.float64))], "tensor a is float64; .pth is written in float32, "),
                             ([("a", array.astype(jnp.float8_e4m3fn))], "tensor a is float8_e4m3fn")):
        with pytest.raises(ValueError, match=message):
            write_pth(file, tensors)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match=r"x\.pth cannot be written \(.*File too large\): free the disk"):
            write_pth(file, [("b", np.ones(1_000_000, np.float32))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [left.name for left in tmp_path.iterdir()] == ["x.pth"] and file.read_bytes() == before
