"""Files that PyTorch itself wrote."""

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from tests.test_hub import UMT5, VAE, random_params
from wanjax import hub
from wanjax.models import rows
from wanjax.models.rows.umt5 import umt5_rows
from wanjax.models.rows.vae import vae_rows
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
