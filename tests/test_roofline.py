"""A lower bound on the time, by hand."""

import pytest

from wanjax.chips import CHIPS
from wanjax.models.dit_config import REMAT
from wanjax.roofline import estimate, executed, expected
from wanjax.timeline import Seconds
from wanjax.topology import parse

NOTHING = dict(model_flops=1.0, matmul_flops=0.0, attention_flops=0.0, memory_bytes=0.0, sent={})


def test_the_slowest_of_computing_memory_and_network_decides():
    chip, machine = CHIPS["v5p"], parse("v5p:4x4x4")
    second = {  # of work for every device that takes one second
        "matmul": {"matmul_flops": 64 * chip.flops, "model_flops": 64 * chip.flops},
        "attention": {"attention_flops": 64 * chip.flops},
        "memory": {"memory_bytes": chip.hbm_bandwidth},
        "network": {"sent": {"ici": round(2 * chip.link)}},  # a ring sends both ways
    }
    for name, given in second.items():
        found = estimate(machine, **{**NOTHING, **given})
        assert getattr(found, f"{name}_seconds") == pytest.approx(1.0)
        assert found.step_seconds == pytest.approx(1.0)
    both = estimate(machine, **{**NOTHING, **second["matmul"], **second["attention"], **second["network"]})
    assert (both.step_seconds, both.mfu) == (pytest.approx(2.0), pytest.approx(0.5))


def test_a_line_sends_one_way_and_slices_send_slowly():
    chip = CHIPS["v6e"]
    line = estimate(parse("v6e:4x4"), **{**NOTHING, "sent": {"ici": round(chip.link)}})
    far = estimate(parse("2*v6e:16x16"), **{**NOTHING, "sent": {"dcn": round(chip.network), "ici": round(chip.link)}})
    assert (line.network_seconds, far.network_seconds) == (pytest.approx(1.0), pytest.approx(1.5))


def test_a_node_of_gpus_sends_through_its_switch_and_its_adapters():
    chip = CHIPS["h100"]
    sent = {"nvlink": round(chip.link), "network": round(chip.network)}
    assert estimate(parse("h100:8x8"), **{**NOTHING, "sent": sent}).network_seconds == pytest.approx(2.0)


def test_a_chip_of_two_devices_shares_its_rates():
    chip = CHIPS["tpu7x"]
    found = estimate(parse("tpu7x:2x2x1"), **{**NOTHING, "matmul_flops": 4 * chip.flops,
                                              "memory_bytes": chip.hbm_bandwidth, "sent": {"ici": round(chip.link)}})
    assert found.matmul_seconds == pytest.approx(1.0)
    assert (found.memory_seconds, found.network_seconds) == (pytest.approx(2.0), pytest.approx(2.0))


def test_simulated_devices_have_no_estimate():
    assert estimate(parse("cpu:8"), **NOTHING) is None


def test_what_is_expected_is_the_sum_of_the_kernels_or_the_network():
    machine, spent = parse("h200:1x2"), Seconds(2.0, 1.0, 0.5, 0.5)
    found = expected(machine, spent, model_flops=2 * CHIPS["h200"].flops, network_seconds=3.0)
    assert (found.step_seconds, found.mfu) == (pytest.approx(4.0), pytest.approx(1 / 4))
    slow = expected(machine, spent, model_flops=2 * CHIPS["h200"].flops, network_seconds=8.0)
    assert (slow.step_seconds, slow.mfu) == (pytest.approx(8.0), pytest.approx(1 / 8))


def test_recomputation_adds_forward_passes():
    assert {policy: executed(policy, train=True, kernels=False) for policy in ("none", "full", "dots")} == {
        "none": (3, 3), "full": (4, 4), "dots": (3, 4)}  # fmt: skip
    assert all(executed(policy, train=False, kernels=True) == (1, 1) for policy in REMAT)
    assert executed("attention", train=True, kernels=True) == (4, 3.5)  # two products forward, five backward
    assert executed("none", train=True, kernels=False, chunked=True) == (4, 3)  # a chunk is computed anew
