"""The converter writes what the hub, and so a warm start, reads back."""
import jax
import numpy as np
import pytest

from experiments import convert
from tests.parity import dit_case
from wanjax import hub, partition, warm_start
from wanjax.models.dit import DiTConfig, WanDiT

MODEL = DiTConfig(width=16, heads=2, layers=2, ffn=32, in_channels=4, out_channels=4, freq_dim=16, text_dim=8)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder, params = tmp_path_factory.mktemp("release"), {}
    for seed, (name, sub) in enumerate(warm_start.DIFFUSERS_FOLDERS.items()):
        params[name] = dit_case.params(MODEL, seed=seed)
        hub.save_dit(folder / sub, WanDiT(MODEL), params[name])
    return folder, params


@pytest.mark.parametrize("layout", ["diffusers", "official"])
def test_both_experts_survive_a_layout(release, tmp_path, layout):
    folder, params = release
    convert.run(folder, tmp_path / "out", layout=layout)
    mesh = partition.make_mesh(dict.fromkeys(partition.AXES, 1), devices=jax.devices()[:1])
    for name in ("high", "low"):
        found = warm_start.initial_params(tmp_path / "out", name, MODEL, mesh)
        jax.tree.map(np.testing.assert_array_equal, found, params[name])


def test_a_narrower_type_is_stored_and_halves_the_files(release, tmp_path):
    folder, params = release
    convert.run(folder, tmp_path / "out", dtype="bfloat16")
    _, found = hub.load_dit(tmp_path / "out/transformer", dtype="float32")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2), found, params["high"])
    assert hub.load_dit(tmp_path / "out/transformer")[0].config.param_dtype == "bfloat16"


def test_what_cannot_be_converted_is_named_and_nothing_is_left(release, tmp_path):
    folder, _ = release
    with pytest.raises(FileExistsError, match="exists"):
        convert.run(folder, folder)
    with pytest.raises(ValueError, match="neither a run nor"):
        convert.run(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="one set of weights"):
        convert.run(folder, tmp_path / "out", weights="raw")
    assert not list(tmp_path.iterdir())
