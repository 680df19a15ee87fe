"""What the name of a machine stands for, and what is said where there is no such machine."""

import importlib.util
import os
import pathlib
import re
import types

import pytest

from wanjax import topology
from wanjax.chips import CHIPS, GPUS
from wanjax.topology import TopologyError, parse

MACHINES = {  # chips, devices, hosts, rings
    "cpu:8": (8, 8, 1, ()),
    "v4:2x2x1": (4, 4, 1, (False,) * 3),
    "v5p:2x2x1": (4, 4, 1, (False,) * 3),
    "v5p:2x4x4": (32, 32, 8, (False,) * 3),
    "v5p:4x4x4": (64, 64, 16, (True,) * 3),
    "2*v5p:4x4x4": (128, 128, 32, (True,) * 3),
    "v5e:2x4": (8, 8, 1, (False, False)),
    "v5e:4x4": (16, 16, 4, (False, False)),
    "v6e:8x16": (128, 128, 32, (False, True)),
    "v6e:16x16": (256, 256, 64, (True, True)),
    "tpu7x:4x4x4": (64, 128, 16, (True,) * 3),
    "h100:8x8": (64, 64, 8, ()),
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_name_says_chips_devices_hosts_and_rings(name):
    machine = parse(name)
    assert (machine.chips, machine.devices, machine.hosts, machine.rings) == MACHINES[name]


def test_memory_of_a_device_is_its_share_of_the_chip():
    makers = {"v4": 32, "v5e": 16, "v5p": 96, "v6e": 32, "tpu7x": 192, "h100": 80, "h200": 141}  # GiB of a chip
    for name, chip in CHIPS.items():
        assert 0.94 < chip.hbm_bytes * chip.devices / 2**30 / makers[name] < 1, name
    assert 8 * parse("cpu:8").hbm_bytes() == pytest.approx(parse("cpu:1").hbm_bytes(), rel=0.01)


def test_memory_of_a_host_is_that_of_its_chips():
    known = {"v5e:1x1": 48, "v5e:2x4": 384, "v5p:4x4x4": 448, "v6e:4x4": 720, "tpu7x:2x2x1": 960, "h100:2x8": 2000}
    assert {name: parse(name).host_memory for name in known} == {name: size * 10**9 for name, size in known.items()}
    assert parse("v4:2x2x1").host_memory is parse("cpu:8").host_memory is None


def test_every_chip_names_the_sources_of_its_figures():
    for name, chip in CHIPS.items():
        assert chip.sources and all("/" in source for source in chip.sources), name
        assert chip.torus is None or len(chip.torus.longest) == chip.torus.axes, name


@pytest.mark.parametrize("name", ["", "v5p", "v5p:", "v5p:4x4x", "cpu:x", "cpu:2x2", "2*cpu:4", "v9:4x4", "V5P:4x4x4",
                                  "v5p:4,4,4", "cpu:0", "v5p:0x4x4", "0*v5p:4x4x4", "cpu:8 ",
                                  "2*h100:8x8"])  # fmt: skip
def test_a_name_of_no_known_form_is_refused_with_the_forms(name):
    with pytest.raises(TopologyError, match=r"expected one of cpu:N .*, h100:NxG, h200:NxG .*, v6e:AxB .*2\*v5p:4x4x4"):
        parse(name)


def test_a_slice_that_is_not_made_is_refused():
    with pytest.raises(TopologyError, match="a slice of v6e has 2 axes"):
        parse("v6e:4x4x4")
    with pytest.raises(TopologyError, match="a slice of v5p has 3 axes"):
        parse("v5p:4x4")
    with pytest.raises(TopologyError, match="the largest slice of v5e is 16x16"):
        parse("v5e:16x32")
    assert parse("v5p:24x16x16").chips == 6144  # in any order of the axes


def test_gpus_are_nodes_of_up_to_eight():
    machine = parse("h100:8x4")
    assert (machine.platform, machine.devices, machine.hosts) == ("gpu", 32, 8)
    assert machine.links == ("nvlink", "network") and parse("v5p:4x4x4").links == ("ici", "dcn")
    assert [machine.domain(types.SimpleNamespace(id=number)) for number in (0, 3, 4, 31)] == [0, 0, 1, 7]
    for name in ("h100:8", "h100:2x9", "h100:2x2x2"):
        with pytest.raises(TopologyError, match="expected h100:NxG, N nodes of G = 1 to 8 GPUs each"):
            parse(name)


def test_a_gpu_s_description_for_the_compiler_agrees_with_the_planner_s_figures():
    for name, chip in GPUS.items():
        text = (pathlib.Path(topology.__file__).parent / "assets/gpus" / chip.target).read_text()
        stated = dict(re.findall(r"(\w+): (\d+)\n", text))
        assert int(stated["device_memory_size"]) == chip.hbm_bytes, name
        assert int(stated["memory_bandwidth"]) == pytest.approx(chip.hbm_bandwidth, rel=0.01)
        assert re.search("# (Figures: openxla/xla, |Read off such a GPU by XLA itself)", text)


def test_a_missing_compiler_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, extra in (("v5e:2x2", "tpu"), ("h100:1x8", "cuda12")):
        with pytest.raises(TopologyError, match=rf'pip install "wanjax\[{extra}\]"'):
            topology.devices(parse(name))


def test_simulated_devices_are_made_before_jax_starts(monkeypatch):
    assert len(topology.devices(parse("cpu:4"))) == 4
    with pytest.raises(TopologyError, match="simulates 8 devices; start another with XLA_FLAGS=.*count=9"):
        topology.devices(parse("cpu:9"))
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x --xla_force_host_platform_device_count=8")
    topology.prepare(parse("cpu:12"))
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x --xla_force_host_platform_device_count=12"
    monkeypatch.setenv("XLA_FLAGS", "")
    topology.prepare(parse("h100:1x8"))
    assert os.environ["XLA_FLAGS"].split() == ["--xla_gpu_autotune_level=0"]  # there is no GPU to tune on
