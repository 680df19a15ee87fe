"""What a conversion and a load hold in memory at once."""

import tracemalloc

import jax
import numpy as np
import pytest

from tests.test_convert import random_params
from wanjax import convert, hub, hub_orbax, partition
from wanjax.hub_networks import ForeignWeights, rows_of
from wanjax.models.dit import DiTConfig, WanDiT


def peak_of(run):
    """Most bytes that numpy and Python held at once beyond what they held before."""
    run()  # what is imported and kept once
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A transformer of 37 MB: 4 MB in its largest stacked array, 0.5 MB in its largest tensor of a block."""
    folder = tmp_path_factory.mktemp("large")
    config = DiTConfig(width=256, heads=2, layers=8, ffn=512, freq_dim=32, text_dim=64)
    hub.save_dit(folder / "diffusers", WanDiT(config), random_params(config, lambda row: "float32", 0))
    return folder / "diffusers", max(int(np.prod(row.full_shape)) * 4 for row in rows_of(config))


def test_a_conversion_holds_one_tensor_and_one_to_orbax_one_stacked_array(large, tmp_path, monkeypatch):
    source, stacked = large
    monkeypatch.setattr(hub_orbax, "_GROUP", 1_000_000)  # else all of it is small
    counter = iter(range(100))
    for layout, limit in (("official", 6_000_000), ("comfyui", 6_000_000), ("orbax", stacked + 6_000_000)):
        peak = peak_of(lambda layout=layout: convert.convert(source, tmp_path / f"{next(counter)}", layout=layout))
        assert peak < limit, layout


def test_loading_holds_one_stacked_array_on_the_host(large, monkeypatch):
    source, stacked = large
    parts = []
    part = ForeignWeights._part

    def noted(self, row, index):
        array = part(self, row, index)
        parts.append(array.nbytes)
        return array

    monkeypatch.setattr(ForeignWeights, "_part", noted)
    hub.load_dit(source)
    assert max(parts) == stacked
    parts.clear()
    mesh = partition.make_mesh({"fsdp": 4, "tensor": 2})
    _, params = hub.load_dit(source, mesh=mesh)
    assert max(parts) == stacked // 8
    own = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
    assert sum(parts) <= own  # nothing is read that no device of this process holds
