"""Files of ours opened by diffusers, files of diffusers' opened by us."""

import numpy as np
import pytest

pytest.importorskip("torch")
import diffusers
import jax
import torch

from tests.test_hub import DIT, VAE, random_params
from wanjax import hub
from wanjax.models.rows.dit import dit_rows
from wanjax.models.rows.vae import vae_rows


def same_tensors(model, other):
    state, expected = model.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


@pytest.mark.parametrize("network", [DIT, VAE], ids=["transformer", "codec"])
def test_diffusers_opens_what_we_wrote_and_we_what_it_wrote(tmp_path, network):
    table, kind, save, load = {
        DIT: (dit_rows(DIT.config), diffusers.WanTransformer3DModel, hub.save_dit, hub.load_dit),
        VAE: (vae_rows(VAE.config), diffusers.AutoencoderKLWan, hub.save_vae, hub.load_vae),
    }[network]
    params = random_params(table)
    save(tmp_path / "ours", network, params)
    theirs, report = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    assert (tmp_path / "theirs" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    model, found = load(tmp_path / "theirs")
    assert model == network
    jax.tree.map(np.testing.assert_array_equal, found, params)
    save(tmp_path / "again", model, found)
    same_tensors(kind.from_pretrained(tmp_path / "again"), theirs)


def test_sharded_files_of_ours_open_in_diffusers(tmp_path):
    params = random_params(dit_rows(DIT.config))
    hub.save_dit(tmp_path / "one", DIT, params)
    hub.save_dit(tmp_path / "many", DIT, params, max_shard_bytes=30_000)
    kind = diffusers.WanTransformer3DModel
    same_tensors(kind.from_pretrained(tmp_path / "one"), kind.from_pretrained(tmp_path / "many"))


def test_the_official_layout_means_the_same_network(tmp_path):
    """diffusers' own conversion of official names, on a file of ours, gives the tensors of our diffusers layout."""
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    from safetensors.torch import load_file

    params = random_params(dit_rows(DIT.config))
    hub.save_dit(tmp_path / "official", DIT, params, layout="official")
    hub.save_dit(tmp_path / "diffusers", DIT, params)
    name = "diffusion_pytorch_model.safetensors"
    converted = single_file.convert_wan_transformer_to_diffusers(load_file(tmp_path / "official" / name))
    expected = load_file(tmp_path / "diffusers" / name)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)
