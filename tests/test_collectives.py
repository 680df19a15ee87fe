"""Bytes that a program sends, read from its text: of short texts, and of compiled programs whose bytes are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from wanjax import collectives, partition
from wanjax.collectives import HloError, axes_of, link_of, parse, within

SUM = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
"""


def entry(*lines):
    return "\n".join(["HloModule jit_f, is_scheduled=true", SUM, "ENTRY %main (p: f32[8]) -> f32[8] {",
                      "  %p = f32[8]{0} parameter(0)", *(f"  {line}" for line in lines), "}"])  # fmt: skip


def only(text, devices=8):
    (found,) = parse(text, devices).collectives
    return found.op, found.dtype, found.group, found.count, found.payload, found.bytes


@pytest.mark.parametrize("line,expected", [
    ("%g = bf16[8,16]{1,0} all-gather(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}",
     ("all-gather", "bf16", 4, 1, 256, 192)),
    ("%g = f32[64]{0} all-gather(f32[8]{0} %p), replica_groups=[1,8]<=[8], dimensions={0}",
     ("all-gather", "f32", 8, 1, 256, 224)),
    ("%r = f32[16]{0:T(8,128)} reduce-scatter(%p), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add",
     ("reduce-scatter", "f32", 2, 1, 128, 64)),
    ("%r = f32[16]{0} all-reduce(%p), replica_groups={}, to_apply=%add", ("all-reduce", "f32", 8, 1, 64, 112)),
    ("ROOT %r = (f32[16]{0}, bf16[8]{0}) all-reduce(%p, %q), replica_groups=[2,4]<=[8], to_apply=%add",
     ("all-reduce", "f32+bf16", 4, 1, 80, 120)),
    ("%t = (f32[4]{0}, f32[4]{0}) all-to-all(%p, %q), replica_groups={{0,1}}", ("all-to-all", "f32", 2, 1, 32, 16)),
    ("%c = u8[100]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}",
     ("collective-permute", "u8", 2, 1, 100, 100)),
    ("%g = s4[16]{0} all-gather(%p), replica_groups=[1,8]<=[8]", ("all-gather", "s4", 8, 1, 8, 7)),
])  # fmt: skip
def test_bytes_are_those_of_a_ring(line, expected):
    assert only(entry(line)) == expected


def test_operations_of_one_kind_add_up_and_others_stay_apart():
    gather = "all-gather(%p), replica_groups=[1,8]<=[8], dimensions={0}"
    found = parse(LOOP + entry(f"%a = f32[64]{{0}} {gather}", f"%b = f32[128]{{0}} {gather}",
                               "%r = f32[16]{0} all-reduce(%p), replica_groups={}, to_apply=%add",
                               f'{WHILE}, backend_config={{"known_trip_count":{{"n":"3"}}}}'), 8)  # fmt: skip
    assert [(each.op, each.count, each.bytes) for each in found.collectives] == [
        ("all-gather", 5, 224 + 448 + 3 * 224), ("all-reduce", 1, 112)]  # fmt: skip
    assert found.bytes == 6 * 224 + 112


@pytest.mark.parametrize("start,done,expected", [
    ("(bf16[8]{0:T(256)(128)(2,1)}, bf16[32]{0:T(256)(128)(2,1)S(1)}) all-gather-start(%p), "
     "replica_groups=[2,4]<=[8]", "bf16[32]{0} all-gather-done(%s)", ("all-gather", "bf16", 4, 1, 64, 48)),
    ("f32[16]{0} all-reduce-start(%p), replica_groups=[1,8]<=[8], to_apply=%add", "f32[16]{0} all-reduce-done(%s)",
     ("all-reduce", "f32", 8, 1, 64, 112)),
    ("((f32[32]{0}), f32[4]{0}, u32[]) reduce-scatter-start(%p), replica_groups=[1,8]<=[8], to_apply=%add",
     "f32[4]{0} reduce-scatter-done(%s)", ("reduce-scatter", "f32", 8, 1, 128, 112)),
    ("((f32[4]{0}, f32[4]{0}), (f32[4]{0}, f32[4]{0})) all-to-all-start(%p, %q), replica_groups={{0,1}}",
     "(f32[4]{0}, f32[4]{0}) all-to-all-done(%s)", ("all-to-all", "f32", 2, 1, 32, 16)),
    ("(f32[9]{0}, f32[9]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1},{1,2}}",
     "f32[9]{0} collective-permute-done(%s)", ("collective-permute", "f32", 2, 1, 36, 36)),
], ids=["all-gather", "all-reduce", "reduce-scatter", "all-to-all", "permute"])  # fmt: skip
def test_a_pair_of_start_and_done_counts_once(start, done, expected):
    assert only(entry(f"%s = {start}", f"%d = {done}")) == expected


def test_a_wrapped_pair_counts_once():
    wrapped = """
%wrapped (q: f32[32]) -> f32[4] {
  %q = f32[32]{0} parameter(0)
  ROOT %rs = f32[4]{0} reduce-scatter(%q), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}
"""
    text = entry("%s = ((f32[32]{0}), f32[4]{0}) async-start(%p), calls=%wrapped",
                 "%u = ((f32[32]{0}), f32[4]{0}) async-update(%s), calls=%wrapped",
                 "%d = f32[4]{0} async-done(%u), calls=%wrapped")  # fmt: skip
    assert only(wrapped + text) == ("reduce-scatter", "f32", 8, 1, 128, 112)


def test_a_gather_that_is_fused_with_what_goes_on_beside_it_counts_once():
    fused = "".join(f"""
%{name} (q: f32[8]) -> f32[64] {{
  %q = f32[8]{{0}} parameter(0)
  ROOT %g = f32[64]{{0}} all-gather(%q), channel_id=1, replica_groups=[1,8]<=[8], dimensions={{0}}
}}
""" for name in ("begin", "async_collective_fusion.1", "end"))
    text = entry("%async-collective-start.3 = f32[64]{0} fusion(%p), kind=kCustom, calls=%begin",
                 "%f = f32[64]{0} fusion(%p), kind=kOutput, calls=%async_collective_fusion.1",
                 "%async-collective-done.3 = f32[64]{0} fusion(%f), kind=kCustom, calls=%end")  # fmt: skip
    assert only(fused + text) == ("all-gather", "f32", 8, 1, 256, 224)


def test_a_fused_all_reduce_of_which_a_slice_is_kept_is_a_reduce_scatter():
    fused = """
%all-reduce-scatter.3 (q: bf16[32,8]) -> bf16[8,8] {
  %q = bf16[32,8]{1,0} parameter(0)
  %all = bf16[32,8]{1,0} all-reduce(%q), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %own = bf16[8,8]{1,0} dynamic-slice(%all, %i, %z), dynamic_slice_sizes={8,8}
}
"""
    text = fused + entry("%f = bf16[8,8]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.3")
    assert only(text) == ("reduce-scatter", "bf16", 4, 1, 512, 384)


LOOP = """
%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %g = f32[64]{0} all-gather(%x), replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %n = (s32[], f32[8]{0}) tuple(%i, %x)
}

%cond (t: (s32[], f32[8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}
"""
WHILE = "%w = (s32[], f32[8]{0}) while(%t), condition=%cond, body=%body"


def test_loops_are_multiplied_out():
    text = LOOP + entry(f'{WHILE}, backend_config={{"known_trip_count":{{"n":"40"}},"known_init_step":{{"init":"0"}}}}')
    assert only(text) == ("all-gather", "f32", 8, 40, 40 * 256, 40 * 224)
    assert parse(text, 8).unknown_loops == 0


def test_what_stands_behind_a_kernel_is_read():
    """Its metadata goes over several lines, of which one starts with the bracket that ends a computation elsewhere."""
    kernel = """%k = f32[8]{0} custom-call(%p), custom_call_target="tpu_custom_call", attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="kernel"}"""
    text = entry(kernel, "%g = f32[64]{0} all-gather(%k), replica_groups=[1,8]<=[8], dimensions={0}")
    assert only(text) == ("all-gather", "f32", 8, 1, 256, 224)


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    found = parse(LOOP + entry(WHILE), 8)
    assert (found.bytes, found.unknown_loops) == (224, 1)
    quiet = LOOP.replace("all-gather", "not-a-collective")
    assert parse(quiet + entry(WHILE), 8).unknown_loops == 0


def test_of_two_branches_the_one_that_sends_more_counts():
    branches = "".join(f"""
%b{n} (x: f32[8]) -> f32[8] {{
  %g = f32[{n}]{{0}} all-gather(%x), replica_groups=[1,8]<=[8]
}}
""" for n in (8, 64))  # fmt: skip
    many = "%c = f32[8]{0} conditional(%i, %p, %p), branch_computations={%b8, %b64}"
    two = "%c = f32[8]{0} conditional(%i, %p, %p), true_computation=%b64, false_computation=%b8"
    for line in (many, two):
        assert only(branches + entry(line)) == ("all-gather", "f32", 8, 1, 256, 224)


@pytest.mark.parametrize("written,groups", [
    ("mesh['a'=2,'b'=4] {'b'}", ((0, 1, 2, 3), (4, 5, 6, 7))),
    ("mesh['a'=2,'b'=4] {'a'}", ((0, 4), (1, 5), (2, 6), (3, 7))),
    ("mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}", ((0, 1, 2, 3), (4, 5, 6, 7))),
    ("mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", ((0, 4), (1, 5), (2, 6), (3, 7))),
    ("mesh['a'=4], device_ids=(3,1,2,0) {'a'}", ((3, 1, 2, 0),)),
    ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", ((0, 1, 4, 5), (2, 3, 6, 7))),
    ("mesh['a'=8] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
    ("[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7))),
    ("{{0,2},{1,3}}", ((0, 2), (1, 3))),
])  # fmt: skip
def test_groups_are_read_in_every_notation(written, groups):
    text = entry(f"%g = f32[64]{{0}} all-gather(%p), channel_id=2, replica_groups={written}, dimensions={{0}}")
    (found,) = parse(text, 8).collectives
    assert (found.groups, found.group) == (groups, len(groups[0]))


def test_what_is_not_understood_is_refused():
    with pytest.raises(HloError, match="no ENTRY"):
        parse("HloModule m", 8)
    with pytest.raises(HloError, match="replica groups are not understood"):
        parse(entry("%g = f32[8]{0} all-gather(%p), replica_groups=@somewhere"), 8)
    with pytest.raises(HloError, match="type 'x99' is not known"):
        parse(entry("%g = x99[8]{0} all-gather(%p), replica_groups={}"), 8)


def test_groups_say_axes_and_links():
    mesh = {"data": 2, "fsdp": 2, "seq": 2, "tensor": 1}
    assert axes_of([(0, 1), (2, 3)], mesh) == ("seq",)
    assert axes_of([(0, 2), (1, 3)], mesh) == ("fsdp",)
    assert axes_of([(0, 1, 4, 5)], mesh) == ("data", "seq")
    slices = [0, 0, 0, 0, 1, 1, 1, 1]
    assert link_of([(0, 1), (2, 3)], slices.__getitem__, "ici", "dcn") == "ici"
    assert link_of([(0, 1), (3, 4)], slices.__getitem__, "ici", "dcn") == "dcn"
    for groups, members in (([(0, 1, 4, 5)], 2), ([(0, 4), (1, 2, 5, 6)], 1), ([()], 1)):
        assert within(groups, slices.__getitem__) == members


def test_a_compiled_program_sends_what_was_written():
    """Five turns of a loop: a gather over 4, a reduce-scatter over 2, an all-to-all over 4, of known sizes."""
    mesh, turns = partition.make_mesh({"fsdp": 4, "seq": 2}), 5

    def shard(x):  # [2, 16, 32] of [8, 32, 32]

        def turn(x, _):
            whole = jax.lax.all_gather(x.astype(jnp.bfloat16), "fsdp", axis=0, tiled=True)  # [8, 16, 32]
            part = jax.lax.psum_scatter(whole.astype(jnp.float32) ** 2, "seq", scatter_dimension=2, tiled=True)
            turned = jax.lax.all_to_all(jnp.sin(part), "fsdp", 1, 2, tiled=True)  # [8, 4, 64]
            return x + turned.reshape(8, 16, 16).sum(0)[None, :, :1], None

        return jax.lax.scan(turn, x, None, length=turns)[0]

    spec = P("fsdp", "seq")
    mapped = jax.shard_map(shard, mesh=mesh, in_specs=spec, out_specs=spec, axis_names={"fsdp", "seq"})
    text = jax.jit(mapped).lower(jax.ShapeDtypeStruct((8, 32, 32), jnp.float32)).compile().as_text()
    found = {each.op: each for each in parse(text, 8).collectives}
    gathered, scattered, turned = found["all-gather"], found["reduce-scatter"], found["all-to-all"]
    itemsize = {"bf16": 2, "f32": 4}[gathered.dtype]  # the CPU's compiler may widen it
    assert (gathered.count, gathered.bytes) == (turns, turns * 8 * 16 * 32 * itemsize * 3 // 4)
    assert (scattered.count, scattered.bytes) == (turns, turns * 8 * 16 * 16 * 4)
    assert (turned.count, turned.bytes) == (turns, turns * 8 * 16 * 16 * 4 * 3 // 4)
    assert [axes_of(each.groups, dict(mesh.shape)) for each in (gathered, scattered, turned)] == [
        ("fsdp",), ("seq",), ("fsdp",)]  # fmt: skip
    assert collectives.sent("all-gather", 4096, 1) == 0
