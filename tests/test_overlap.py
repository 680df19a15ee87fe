"""What goes on beside what is sent, read from short scheduled programs whose figures are known."""

import pytest

from benchmarks.overlap import Schedule
from wanjax import hlo

GROUPS = "replica_groups=[1,8]<=[8]"
DOT = "dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}"  # 2 · 8³ operations
GATHER = f"f32[8,64]{{1,0}} all-gather(%p), channel_id=1, {GROUPS}, dimensions={{1}}"  # sends 7/8 of 2,048 bytes
SENT, WORK = 1792, 1024


def scheduled(*lines, more="", devices=8):
    text = "\n".join(["HloModule jit_f, is_scheduled=true", more, "ENTRY %main (p: f32[8,8]) -> f32[8,8] {",
                      "  %p = f32[8,8]{1,0} parameter(0)", *(f"  {line}" for line in lines), "}"])  # fmt: skip
    return Schedule(hlo.parse(text), devices)


def computation(name, *lines):
    return "\n".join([f"%{name} (p: f32[8,8]) -> f32[8,8] {{", "  %p = f32[8,8]{1,0} parameter(0)",
                      *(f"  {line}" for line in lines), "}\n"])  # fmt: skip


START = f"%s = (f32[8,8]{{1,0}}, f32[8,64]{{1,0}}) all-gather-start(%p), {GROUPS}, dimensions={{1}}"
END = "%e = f32[8,64]{1,0} all-gather-done(%s)"
PRODUCT = f"%d = f32[8,8]{{1,0}} {DOT}"
ALONE = f"%g = {GATHER}"
ADDED = "%a = f32[8,8]{1,0} add(%p, %p)"


@pytest.mark.parametrize("lines,how", [
    ([ALONE, PRODUCT], "waited for"),
    ([START, END, PRODUCT], "paired"),
    ([START, ADDED, END, PRODUCT], "paired"),
    ([START, PRODUCT, END], "beside work"),
])  # fmt: skip
def test_bytes_count_by_what_stands_between_start_and_end(lines, how):
    assert scheduled(*lines).table() == {("all-gather", how): (1, SENT)}


def test_what_sparse_cores_send_is_found_within_their_calls():
    call = 'custom-call(%p), custom_call_target="sparse", called_computations={%inner}'
    more = computation("inner", f"ROOT {ALONE}") + computation("outer", f"ROOT %c = f32[8,64]{{1,0}} {call}")
    lines = ("%s = ((f32[8,8]{1,0}), f32[8,64]{1,0}, u32[]) async-start(%p), calls=%outer",
             "%u = ((f32[8,8]{1,0}), f32[8,64]{1,0}, u32[]) async-update(%s)", PRODUCT,
             "%e = f32[8,64]{1,0} async-done(%u)")  # fmt: skip
    assert scheduled(*lines, more=more).table() == {("all-gather", "beside work"): (1, SENT)}


def test_a_gather_that_is_fused_with_a_loops_work_counts_once():
    """As a v5e has it: a fusion starts it, those of a loop have a part of it each, another ends it."""
    part = f"%g = {GATHER}"
    more = (
        computation("begin", f"ROOT {part}")
        + computation("async_collective_fusion.1", part, f"ROOT %d = f32[8,8]{{1,0}} {DOT}")
        + computation("body", "ROOT %f = f32[8,8]{1,0} fusion(%p), kind=kOutput, calls=%async_collective_fusion.1")
        + computation("going", "ROOT %t = pred[] constant(true)")
    )
    lines = ("%async-collective-start.3 = f32[8,64]{1,0} fusion(%p), kind=kCustom, calls=%begin",
             "%w = f32[8,8]{1,0} while(%p), condition=%going, body=%body, "
             'backend_config={"known_trip_count":{"n":"4"}}',
             "%async-collective-done.3 = f32[8,64]{1,0} fusion(%w), kind=kCustom, calls=%begin")  # fmt: skip
    schedule = scheduled(*lines, more=more)
    assert schedule.table() == {("all-gather", "beside work"): (1, SENT)}
    # a second of work, and of sending two
    assert schedule.seconds(4 * WORK, SENT / 2) == pytest.approx((1, 1))


@pytest.mark.parametrize("lines,waiting", [
    ([ALONE, PRODUCT], 2.0),
    ([START, PRODUCT, END], 1.0),
    ([START, PRODUCT, PRODUCT.replace("%d", "%d.2"), PRODUCT.replace("%d", "%d.3"), END], 0.0),
    # one link: the second is sent when the first has been
    ([START, START.replace("%s", "%s.2"), PRODUCT, END, END.replace("%s", "%s.2").replace("%e", "%e.2")], 3.0),
    ([START, PRODUCT, ALONE, END], 3.0),
    # along another axis it has links of its own
    ([START, PRODUCT, ALONE.replace("[1,8]<=[8]", "{{0,2,4,6,8,10,12,14},{1,3,5,7,9,11,13,15}}"), END], 2.0),
])  # fmt: skip
def test_seconds_of_waiting_are_those_that_no_work_covers(lines, waiting):
    products = sum("dot(" in line for line in lines)
    assert scheduled(*lines).seconds(WORK, SENT / 2) == pytest.approx((products, waiting))


def test_turns_of_a_loop_add_up():
    more = computation("body", ALONE, f"ROOT {PRODUCT}") + computation("going", "ROOT %t = pred[] constant(true)")
    loop = ("%w = f32[8,8]{1,0} while(%p), condition=%going, body=%body, "
            'backend_config={"known_trip_count":{"n":"3"}}')  # fmt: skip
    schedule = scheduled(loop, more=more)
    assert schedule.table() == {("all-gather", "waited for"): (3, 3 * SENT)}
    assert schedule.seconds(WORK, SENT) == pytest.approx((3, 3))
