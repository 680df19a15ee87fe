"""Bytes that a program's kernels move, and their operations: of short texts, and of compiled programs whose traffic is
known."""

import jax
import jax.numpy as jnp
import pytest

from tests.test_collectives import entry
from wanjax import hlo, hlo_loops, kernels
from wanjax.kernels import Cost

FUSED = """
%fused_slice (a: bf16[4,100], i: s32[]) -> f32[1,100] {
  %a = bf16[4,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %wide = f32[4,100]{1,0} convert(%a)
  ROOT %s = f32[1,100]{1,0} dynamic-slice(%wide, %i, %zero), dynamic_slice_sizes={1,100}
}

%fused_update (a: f32[4,100], i: s32[], x: f32[1,100]) -> f32[400] {
  %a = f32[4,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = f32[1,100]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %u = f32[4,100]{1,0} dynamic-update-slice(%a, %x, %i, %zero)
  ROOT %flat = f32[400]{0} bitcast(%u)
}

%fused_halves (a: f32[100]) -> (f32[50], f32[]) {
  %a = f32[100]{0} parameter(0)
  %low = f32[50]{0} slice(%a), slice={[0:50]}
  %high = f32[50]{0} slice(%a), slice={[50:100]}
  %zero = f32[] constant(0)
  %sum = f32[50]{0} add(%low, %high)
  %all = f32[] reduce(%sum, %zero), dimensions={0}, to_apply=%add
  ROOT %both = (f32[50]{0}, f32[]) tuple(%sum, %all)
}

%fused_dot (a: f32[8,16], b: bf16[16,4]) -> bf16[8,4] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = bf16[16,4]{1,0} parameter(1)
  %short = bf16[8,16]{1,0} convert(%a)
  ROOT %d = bf16[8,4]{1,0} dot(%short, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
PARAMETERS = ("%stack = bf16[4,100]{1,0} parameter(1)", "%wide = f32[4,100]{1,0} parameter(2)",
              "%row = f32[1,100]{1,0} parameter(3)", "%i = s32[] parameter(4)",
              "%far = bf16[4,100]{1,0:S(5)} parameter(5)", "%flat = f32[100]{0} parameter(6)",
              "%x = f32[8,16]{1,0} parameter(7)", "%w = bf16[16,4]{1,0} parameter(8)")  # fmt: skip


def cost(line):
    module = hlo.parse(FUSED + entry(*PARAMETERS, line))
    computation = module.computations[module.entry]
    return kernels.cost(module, computation, list(computation.instructions.values())[-1])


@pytest.mark.parametrize("line,size", [
    ("%y = f32[4,100] add(%wide, %wide)", 3 * 1600),
    ("%y = f32[4,100] broadcast(%i), dimensions={}", 4 + 1600),
    ("%y = bf16[4,100] copy(%stack)", 2 * 800),
    ("%y = (f32[4,100], f32[4,100], u32[]) copy-start(%wide)", 2 * 1600),
    ("%y = f32[1,100] dynamic-slice(%wide, %i, %i), dynamic_slice_sizes={1,100}", 2 * 400),
    ("%y = f32[4,100] dynamic-update-slice(%wide, %row, %i, %i)", 2 * 400),
    # what is sliced behind a conversion, what is updated in place, two halves of one array and a sum of what is written
    ("%y = f32[1,100] fusion(%stack, %i), kind=kLoop, calls=%fused_slice", 200 + 4 + 400),
    ("%y = ((bf16[4,100], s32[]), f32[1,100], u32[]) fusion-start(%stack, %i), kind=kLoop, calls=%fused_slice",
     200 + 4 + 400),
    ("%y = f32[400] fusion(%wide, %i, %row), kind=kLoop, calls=%fused_update", 400 + 4 + 400),
    ("%y = (f32[50], f32[]) fusion(%flat), kind=kInput, calls=%fused_halves", 400 + 200 + 4),
])  # fmt: skip
def test_a_kernel_moves_what_it_reads_and_what_it_writes(line, size):
    assert cost(line) == Cost(memory=size)


def test_of_an_array_in_the_hosts_memory_the_slice_is_fetched():
    fetched = "%y = ((bf16[4,100], s32[]), f32[1,100], u32[]) fusion-start(%far, %i), kind=kLoop, calls=%fused_slice"
    assert cost(fetched) == Cost(from_host=200, memory=4 + 400)
    assert cost("%y = bf16[4,100]{1,0:S(5)} copy(%stack)") == Cost(memory=800, to_host=800)


def test_operations_are_those_of_products_and_attention():
    assert cost("%y = bf16[8,4] fusion(%x, %w), kind=kCustom, calls=%fused_dot") == Cost(
        products=2 * 8 * 16 * 4, memory=4 * 8 * 16 + 2 * 16 * 4 + 2 * 8 * 4)  # fmt: skip
    wide = "%y = f32[8,8] dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}"
    assert cost(wide) == Cost(wide=2 * 8 * 16 * 8, memory=2 * 4 * 8 * 16 + 4 * 8 * 8)
    for target, way, operations in (("fmhaSoftmax", "forward", 2), ("fmhaSoftmaxBackward", "backward", 5)):
        config = '{"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"dimensions": ["1", "2", "8", "8"]}}}'
        found = cost(f'%y = bf16[1,8,2,8] custom-call(%x, %x, %x), custom_call_target="__cudnn${target}", '
                     f"backend_config={config}")  # fmt: skip
        assert getattr(found, way) == operations * 2 * 2 * 8 * 8 * (8 * 16 // (2 * 8)) and found.products == 0


@pytest.mark.parametrize("line", [
    "%y = f32[400] bitcast(%wide)", "%y = (f32[4,100]) tuple(%wide)", "%y = f32[4,100] get-tuple-element(%t), index=0",
    "%y = f32[16] all-reduce(%flat), replica_groups={}, to_apply=%add", "%y = f32[4,100] fusion-done(%s)",
    '%y = f32[4,100]{1,0:S(5)} custom-call(), custom_call_target="AllocateBuffer"',
])  # fmt: skip
def test_what_names_waits_or_sends_is_no_kernel(line):
    assert cost(line) is None


def traffic(function, *shapes):
    """Bytes that all kernels of a program compiled for a CPU move, loops multiplied out, those of counters apart."""
    module = hlo.parse(jax.jit(function).lower(*shapes).compile().as_text())

    def leaf(computation, each):
        if each.opcode in ("while", "conditional", "call"):
            return None
        found = kernels.cost(module, computation, each)
        return {("bytes",): (found.memory if found and found.memory > 64 else 0,)}

    totals, unknown = hlo_loops.fold(module, leaf, lambda totals: totals["bytes",][0])
    assert unknown == 0
    return totals["bytes",][0]


def test_compiled_programs_move_what_is_known_of_them():
    one = 4 * 64 * 64
    x, stack = jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((8, 64, 64), jnp.float32)
    assert traffic(lambda x, y: jnp.tanh(x) * y + 1, x, x) == 3 * one
    # a turn reads the state, one layer of eight and its number, and writes the state; before the loop it is copied
    found = traffic(lambda x, stack: jax.lax.scan(lambda x, w: (jnp.sin(x * w), None), x, stack)[0], x, stack)
    assert found == 8 * (3 * one + 4) + 2 * one
    # of the stack that it gives a turn writes one layer, too; the rest is what makes it
    found = traffic(lambda x: jax.lax.scan(lambda x, _: (x * 2, x * 3), x, None, length=8), x)
    assert 8 * 4 * one <= found < 8 * 8 * one
