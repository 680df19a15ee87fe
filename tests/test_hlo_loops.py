"""How often a loop of a compiled program turns, whatever form its counter has been given; never a guess."""

import jax
import jax.numpy as jnp
import pytest

from wanjax import hlo, hlo_loops

COUNTED = """
HloModule m

%fused_less (a: s32[], b: s32[]) -> pred[] {{
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %c = pred[] compare(%a, %b), direction={direction}
}}

%fused_next (a: s32[]) -> s32[] {{
  %a = s32[] parameter(0)
  %step = s32[] constant({step})
  ROOT %n = s32[] {operation}(%a, %step)
}}

%cond (t: (s32[], (f32[8], s32[]), s32[])) -> pred[] {{
  %t = (s32[], (f32[8]{{0}}, s32[]), s32[]) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%t), index=0
  %pair = (f32[8]{{0}}, s32[]) get-tuple-element(%t), index=1
  %limit = s32[] get-tuple-element(%pair), index=1
  %seen = f32[] checked(%i)
  ROOT %less = pred[] fusion(%i, %limit), kind=kLoop, calls=%fused_less
}}

%body (t: (s32[], (f32[8], s32[]), s32[])) -> (s32[], (f32[8], s32[]), s32[]) {{
  %t = (s32[], (f32[8]{{0}}, s32[]), s32[]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %pair = (f32[8]{{0}}, s32[]) get-tuple-element(%t), index=1
  %x = f32[8]{{0}} get-tuple-element(%pair), index=0
  %limit = s32[] get-tuple-element(%pair), index=1
  %moved = (s32[], s32[], u32[]) copy-start(%limit)
  %there = s32[] copy-done(%moved)
  %other = s32[] get-tuple-element(%t), index=2
  %next = s32[] call(%i), to_apply=%fused_next
  %y = f32[8]{{0}} work(%x)
  %kept = (f32[8]{{0}}, s32[]) tuple(%y, %there)
  ROOT %n = (s32[], (f32[8]{{0}}, s32[]), s32[]) tuple(%next, %kept, %next)
}}

ENTRY %main (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  %start = s32[] constant({start})
  %limit = s32[] constant({limit})
  %pair = (f32[8]{{0}}, s32[]) tuple(%p, %limit)
  %t = (s32[], (f32[8]{{0}}, s32[]), s32[]) tuple(%start, %pair, %start)
  %w = (s32[], (f32[8]{{0}}, s32[]), s32[]) while(%t), condition=%cond, body=%body
  ROOT %r = f32[8]{{0}} copy(%p)
}}
"""


def works(text, opcode="work"):
    """How often an instruction runs, and how many loops of it are of unknown length."""
    totals, unknown = hlo_loops.fold(
        hlo.parse(text), lambda _, each: {(opcode,): (1,)} if each.opcode == opcode else None, len
    )
    return totals.get((opcode,), (0,))[0], unknown


@pytest.mark.parametrize("start,limit,step,direction,operation,turns", [
    (0, 40, 1, "LT", "add", 40), (1, 40, 1, "LE", "add", 40), (0, 5, 2, "LT", "add", 3),
    (40, 0, 1, "GT", "subtract", 40), (7, 0, 1, "NE", "subtract", 7), (3, 3, 1, "LT", "add", 0),
    (1, 1000, 2, "LT", "multiply", 10),
])  # fmt: skip
def test_a_counter_is_followed_through_fusions_tuples_and_copies(start, limit, step, direction, operation, turns):
    text = COUNTED.format(start=start, limit=limit, step=step, direction=direction, operation=operation)
    assert works(text) == (turns, 0)
    assert works(text, "checked") == (turns + 1, 0)  # the condition once more, when it fails


@pytest.mark.parametrize("before,after", [
    ("%start = s32[] constant(0)", "%start = s32[] partition-id()"),  # known only when it runs
    ("%limit = s32[] constant(9)", "%limit = s32[] reduce(%p), to_apply=%fused_next"),
    ("%there = s32[] copy-done(%moved)", "%there = s32[] reduce(%x), to_apply=%fused_next"),  # another every turn
    ("constant(1)", "constant(0)"),  # this one never ends
], ids=["start", "limit", "moving", "still"])  # fmt: skip
def test_what_is_not_known_before_the_program_runs_is_not_guessed(before, after):
    text = COUNTED.format(start=0, limit=9, step=1, direction="LT", operation="add")
    assert before in text
    assert works(text.replace(before, after)) == (1, 1)


def test_an_inner_loop_may_count_to_what_is_outside():
    inner = COUNTED.format(start=0, limit=9, step=1, direction="LT", operation="add")
    main = inner.index("ENTRY")
    outer = """
%turn (t: (s32[], f32[8], s32[])) -> (s32[], f32[8], s32[]) {
  %u = (s32[], f32[8]{0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%u), index=0
  %p = f32[8]{0} get-tuple-element(%u), index=1
  %limit = s32[] get-tuple-element(%u), index=2
  %one = s32[] constant(1)
  %zero = s32[] constant(0)
  %next = s32[] add(%i, %one)
  %pair = (f32[8]{0}, s32[]) tuple(%p, %limit)
  %t = (s32[], (f32[8]{0}, s32[]), s32[]) tuple(%zero, %pair, %zero)
  %w = (s32[], (f32[8]{0}, s32[]), s32[]) while(%t), condition=%cond, body=%body
  ROOT %n = (s32[], f32[8]{0}, s32[]) tuple(%next, %p, %limit)
}

%more (t: (s32[], f32[8], s32[])) -> pred[] {
  %u = (s32[], f32[8]{0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%u), index=0
  %three = s32[] constant(3)
  ROOT %c = pred[] compare(%i, %three), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %five = s32[] constant(5)
  %t = (s32[], f32[8]{0}, s32[]) tuple(%zero, %p, %five)
  %w = (s32[], f32[8]{0}, s32[]) while(%t), condition=%more, body=%turn
  ROOT %r = f32[8]{0} get-tuple-element(%w), index=1
}
"""
    assert works(inner[:main] + outer) == (15, 0)
    moving = outer.replace("tuple(%next, %p, %limit)", "tuple(%next, %p, %next)")
    assert works(inner[:main] + moving) == (3, 1)


def test_loops_of_compiled_programs_are_known_without_the_compiler_s_word():
    def scanned(x):
        return jax.lax.scan(lambda x, _: (jax.lax.fori_loop(2, 7, lambda _, x: jnp.sin(x @ x), x), None), x, None,
                            length=3)[0]  # fmt: skip

    text = jax.jit(scanned).lower(jax.ShapeDtypeStruct((4, 4), jnp.float32)).compile().as_text()
    assert "known_trip_count" in text
    module = hlo.parse(text.replace("known_trip_count", "unsaid"))
    found, unknown = hlo_loops.fold(module, lambda _, each: {("dot",): (1,)} if each.opcode == "dot" else None, len)
    assert (found, unknown) == ({("dot",): (3 * 5,)}, 0)


def test_text_is_read_into_shapes_and_attributes():
    module = hlo.parse(COUNTED.format(start=0, limit=9, step=1, direction="LT", operation="add"))
    loop = module.computations[module.entry].instructions["w"]
    assert loop.loop() == ("cond", "body") and loop.operands == ("t",)
    assert hlo.elements(loop.shape) == ["s32[]", "(f32[8]{0}, s32[])", "s32[]"]
    assert hlo.sizes("(bf16[2,3]{1,0:T(8,128)(2,1)}, f32[4])") == ("bf16+f32", 2 * 3 * 2 + 4 * 4)
    assert hlo.dimensions("f8e4m3fn[7,5]{1,0}") == (7, 5)
    with pytest.raises(hlo.HloError, match="expected a tuple"):
        hlo.elements("f32[8]")
    with pytest.raises(hlo.HloError, match="a bracket is not closed"):
        hlo.parse("ENTRY %m (p: f32[]) -> f32[] {\n  %x = f32[] add(%a, %b\n}")
