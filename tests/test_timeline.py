"""Seconds of a compiled program's kernels at given rates, by hand."""

import pytest

from tests.test_collectives import SUM
from wanjax import hlo
from wanjax.chips import CHIPS, Rates
from wanjax.timeline import Seconds, seconds

RATES = Rates(products=10.0, attention_forward=5.0, attention_backward=4.0, host=40.0, float32=1.0, source="here")
PARAMETERS = ("%p = f32[100]{0} parameter(0)", "%far = f32[10]{0:S(5)} parameter(1)",
              "%a = bf16[2,1]{1,0} parameter(2)", "%wide = f32[2,1]{1,0} parameter(3)", "%one = s32[] constant(1)",
              "%yes = pred[] parameter(4)")  # fmt: skip
SECOND = "%{} = f32[100]{{0}} add(%p, %p)"  # three times 400 bytes
FETCH = "(f32[10]{0}, f32[10]{0:S(5)}, u32[]) copy-start(%far)"  # 40 bytes


def of(*lines, before=""):
    text = "\n".join(["HloModule jit_f, is_scheduled=true", SUM, before, "ENTRY %main (p: f32[100]) -> f32[100] {",
                      *PARAMETERS, *lines, "}"])  # fmt: skip
    return seconds(hlo.parse(text), RATES, bandwidth=1200.0)


def test_kernels_run_one_after_the_other():
    assert of(SECOND.format("x"), SECOND.format("y"), "%t = (f32[100]) tuple(%y)") == Seconds(0, 0, 2, 0)


def test_a_product_takes_its_operations_or_its_bytes():
    product = "%{0} = {1}[2,2] dot(%{2}, %{2}), lhs_contracting_dims={{1}}, rhs_contracting_dims={{1}}"
    assert of(product.format("d", "bf16", "a")).matmul == pytest.approx(2 * 4 / 10)
    assert of(product.format("d", "f32", "wide")).matmul == pytest.approx(2 * 4 / 1)
    outer = "%d = bf16[100,100] dot(%q, %q), lhs_contracting_dims={}, rhs_contracting_dims={}"
    text = "\n".join(["ENTRY %main (q: bf16[100]) -> bf16[100,100] {", "%q = bf16[100] parameter(0)", outer, "}"])
    fast = Rates(1e9, 1e9, 1e9, 1.0, 1e9, "")
    assert seconds(hlo.parse(text), fast, bandwidth=1200.0).matmul == pytest.approx((2 * 200 + 2 * 10_000) / 1200)


@pytest.mark.parametrize("target,rate,products", [("fmhaSoftmax", 5.0, 2), ("fmhaSoftmaxBackward", 4.0, 5)])
def test_attention_has_rates_of_its_own(target, rate, products):
    config = '{"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"dimensions": ["1", "1", "2", "2"]}}}'
    found = of(f'%o = bf16[2,1] custom-call(%a, %a, %a), custom_call_target="__cudnn${target}", '
               f"backend_config={config}")  # fmt: skip
    assert found == Seconds(0, pytest.approx(products * 2 * 2 * 2 / rate), 0, 0)


LOOP = """
%body (t: (s32[], f32[100])) -> (s32[], f32[100]) {
  %t = (s32[], f32[100]) parameter(0)
  %n = s32[] get-tuple-element(%t), index=0
  %p = f32[100] get-tuple-element(%t), index=1
  %x = f32[100]{0} add(%p, %p)
  %one = s32[] constant(1)
  %m = s32[] bitcast(%n)
  ROOT %u = (s32[], f32[100]) tuple(%m, %x)
}
%condition (t: (s32[], f32[100])) -> pred[] {
  %t = (s32[], f32[100]) parameter(0)
  ROOT %c = pred[] constant(true)
}
%short (p: f32[100]) -> f32[100] {
  ROOT %p = f32[100] parameter(0)
}
%long (p: f32[100]) -> f32[100] {
  %p = f32[100] parameter(0)
  ROOT %x = f32[100]{0} add(%p, %p)
}
"""


def test_loops_are_multiplied_out_and_the_longer_branch_counts():
    loop = '%w = (s32[], f32[100]) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":' \
           '{"n":"7"}}'  # fmt: skip
    assert of("%t = (s32[], f32[100]) tuple(%one, %p)", loop, before=LOOP).elementwise == pytest.approx(7)
    branch = "%b = f32[100] conditional(%yes, %p, %p), true_computation=%short, false_computation=%long"
    assert of(branch, "%r = f32[100] call(%p), to_apply=%long", before=LOOP).elementwise == pytest.approx(2)


def test_the_host_is_waited_for_only_where_no_kernel_runs_beside_it():
    """Copies that take a second each."""
    done, other = "%d = f32[10]{0} copy-done(%s)", "%e = f32[10]{0} copy-done(%r)"
    assert of(f"%s = {FETCH}", done) == of(f"%s = {FETCH}") == Seconds(0, 0, 0, 1)
    assert of(f"%s = {FETCH}", SECOND.format("x"), done) == Seconds(0, 0, 1, 0)
    assert of(f"%s = {FETCH}", SECOND.format("x"), f"%r = {FETCH}", done, other) == Seconds(0, 0, 1, 1)
    assert of(f"%s = {FETCH}", f"%r = {FETCH}", SECOND.format("x"), done, other) == Seconds(0, 0, 1, 1)
    assert of("%d = f32[10]{0} copy(%far)") == Seconds(0, 0, 0, 1)
    back = "%r = (f32[10]{0:S(5)}, f32[10]{0}, u32[]) copy-start(%near)"  # runs beside one from the host
    assert of("%near = f32[10]{0} parameter(9)", f"%s = {FETCH}", back, done, other) == Seconds(0, 0, 0, 1)
    assert of(SECOND.format("x"), "%back = f32[100]{0:S(5)} copy(%x)") == Seconds(0, 0, 1, 10)


def test_rates_are_of_what_was_measured_alone():
    assert [name for name, chip in CHIPS.items() if chip.rates] == ["h200"]
    rates = CHIPS["h200"].rates
    for rate in (rates.products, rates.attention_forward, rates.attention_backward, rates.float32):
        assert rate < CHIPS["h200"].flops
