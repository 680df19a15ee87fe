"""Names and shapes of every published member against diffusers' transformer, which is built without memory."""

import pytest

pytest.importorskip("torch", reason="PyTorch is installed by make parity")
import torch

from tests.parity import dit
from wanjax.family import MEMBERS
from wanjax.models.rows.dit import dit_rows


@pytest.mark.parametrize("name", MEMBERS)
def test_every_tensor_has_the_name_and_shape_of_diffusers(name):
    with torch.device("meta"):
        reference = dit.build(MEMBERS[name].model, exact_sinusoid=False)
    theirs = {key: tuple(value.shape) for key, value in reference.state_dict().items()}
    ours = {key: row.foreign_shape for row in dit_rows(MEMBERS[name].model) for key in row.foreign_names("diffusers")}
    assert ours == theirs
    assert sum(value.numel() for value in reference.parameters()) == MEMBERS[name].parameters
