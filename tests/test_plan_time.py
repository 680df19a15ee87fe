"""What a plan says of the time of a program's text."""

import pytest

from tests.test_collectives import entry
from wanjax import collectives, executed, hlo, plan_time, topology
from wanjax.chips import CHIPS
from wanjax.compiled_memory import Memory

# a product of 2^34 operations and a sum of 2^28 values
MODULE = hlo.parse(entry("%a = bf16[2048,2048] parameter(1)", "%b = f32[16384,8192] parameter(2)",
                         "%d = bf16[2048,2048] dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
                         "%s = f32[16384,8192] add(%b, %b)",
                         "%g = f32[1024] all-gather(%p), replica_groups={{0,1}}, dimensions={0}"))  # fmt: skip


def estimate(name, devices=1):
    memory, found, work = Memory(3000, 1000, 500, 1500), collectives.of(MODULE, devices), executed.count(MODULE)
    return plan_time.estimate(topology.parse(name), MODULE, memory, found, work, domain=lambda device: device // 2,
                              model_flops=2.0**34 * devices)  # fmt: skip


def test_what_was_measured_stands_beside_the_lower_bound():
    found, chip = estimate("h200:1x2", devices=2), CHIPS["h200"]
    assert found["matmul_seconds"] == pytest.approx(2**34 / chip.flops)
    assert found["memory_seconds"] == pytest.approx((1500 + 2 * 1500 + 2 * 2048) / chip.hbm_bandwidth)
    assert found["network_seconds"] == pytest.approx(2048 / chip.link)
    expected = found["expected"]
    assert expected["matmul_seconds"] == pytest.approx(2**34 / 640e12)
    assert expected["elementwise_seconds"] == pytest.approx(3 * 4 * 2**27 / 4.8e12)
    assert expected["step_seconds"] == pytest.approx(2**34 / 640e12 + 3 * 4 * 2**27 / 4.8e12)
    assert "one H200" in expected["source"] and expected["step_seconds"] > found["step_seconds"]


@pytest.mark.parametrize("name", ["h100:1x2", "v5p:2x1x1"])
def test_where_nothing_was_measured_nothing_is_expected(name):
    assert estimate(name, devices=2)["expected"] is None


def test_simulated_devices_have_no_times():
    assert estimate("cpu:1") is None
