"""What processes compare before they train together, and the collective that is timed."""

import pathlib
import re

import jax
import pytest

from tests.fake_store import clusters, together
from wanjax import config, partition, preflight
from wanjax.cluster import ClusterError
from wanjax.latent_cache import LatentCache, Manifest, Shard, write_manifest

TINY = pathlib.Path(__file__).parents[1] / "configs/light_scenes_tiny.py"


def test_every_field_and_version_is_compared():
    facts = preflight.program_facts(config.load(TINY), "runs/x")
    assert facts["config.model.width"] == 128 and facts["config.train.steps_high"] == 2200
    assert facts["--workdir"] == "runs/x" and facts["jax"] == jax.__version__ and "--xla_" in facts["XLA_FLAGS"]
    assert {"jaxlib", "wanjax", "wanjax's source", "LIBTPU_INIT_ARGS"} <= facts.keys()
    other = preflight.program_facts(config.load(TINY, {"optimizer.learning_rate": 1e-3}), "runs/x")
    assert {name for name in facts if facts[name] != other[name]} == {"config.optimizer.learning_rate"}


def test_a_mesh_of_other_devices_or_another_order_is_seen():
    devices = jax.devices()
    facts = preflight.mesh_facts(partition.make_mesh({"fsdp": 8}))
    assert facts["mesh"] == {"data": 1, "fsdp": 8, "seq": 1, "tensor": 1} and facts["devices of each process"] == 8
    assert preflight.mesh_facts(partition.make_mesh({"fsdp": 8})) == facts
    turned = jax.sharding.Mesh(partition.make_mesh({"fsdp": 8}).devices[:, ::-1], partition.AXES)
    other = preflight.mesh_facts(turned)
    assert {name for name in facts if other[name] != facts[name]} == {"order of devices"}
    assert preflight.mesh_facts(partition.make_mesh({"seq": 4}, devices[:4])) != facts


def cache(folder, codec):
    folder.mkdir()
    shards = {"train": (Shard("train-00000-of-00001.array_record", 8, 100),)}
    write_manifest(folder, Manifest(codec, "t", {"name": "scenes"}, ("caption_en",), (3, 4, 4, 16), 64, shards))
    return LatentCache(folder)


def test_processes_that_read_other_latents_are_stopped(tmp_path):
    caches = [cache(tmp_path / name, codec) for name, codec in (("a", "c1"), ("b", "c1"), ("c", "c2"))]
    caches[1].folder = caches[2].folder = caches[0].folder  # the same path on storage that is not shared
    errors = together(*[lambda c=c, own=own: preflight.check_data(c, own)
                        for c, own in zip(clusters(3), caches, strict=True)])  # fmt: skip
    assert [type(error) for error in errors] == [ClusterError] * 3
    assert "cache.codec: 'c1' on processes 0, 1; 'c2' on process 2" in str(errors[0])
    assert "caption_en" not in str(errors[0])
    same = [cache(tmp_path / name, "c1") for name in ("d", "e")]
    same[1].folder = same[0].folder
    assert together(*[lambda c=c, own=own: preflight.check_data(c, own)
                      for c, own in zip(clusters(2), same, strict=True)]) == [None, None]  # fmt: skip


def test_the_all_reduce_is_timed_and_a_wrong_sum_is_refused(monkeypatch):
    monkeypatch.setattr(preflight, "COLLECTIVE_BYTES", 4096)
    mesh = partition.make_mesh({"fsdp": 4, "seq": 2})
    assert re.fullmatch(r"an all-reduce of 0 MB over 8 devices takes [\d.e+-]+ ms, [\d.e+-]+ GB/s of each device",
                        preflight.time_all_reduce(mesh))  # fmt: skip
    monkeypatch.setattr(preflight.np, "ones", lambda shape, dtype: preflight.np.full(shape, 0.5, dtype))
    with pytest.raises(ValueError, match="over 8 devices gave 4.0"):
        preflight.time_all_reduce(mesh)
