"""Operations counted from a compiled program's text: of short texts, and of programs whose work is known."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from tests.test_collectives import entry
from wanjax import executed, hlo
from wanjax.executed import count

LINES = ("%lhs = bf16[4,32,16]{2,1,0} parameter(1)", "%rhs = bf16[4,16,8]{2,1,0} parameter(2)")


def work(*lines):
    return count(hlo.parse(entry(*LINES, *lines)))


def test_a_product_is_counted_by_its_shapes():
    line = "%d = bf16[4,32,8]{2,1,0} dot(%lhs, %rhs), lhs_batch_dims={0}, rhs_batch_dims={0}, " \
           "lhs_contracting_dims={2}, rhs_contracting_dims={1}"  # fmt: skip
    assert work(line) == executed.Work(2 * 4 * 32 * 16 * 8, (), 0, ())


@pytest.mark.parametrize("lhs,rhs,out,attributes,macs", [
    ("32,16", "16,8", "32,8", "dim_labels=bf_io->bf", 32 * 16 * 8),
    # a batch of four products, as a TPU's compiler writes it: of every window one cell meets a value of the input
    ("4,32,16", "4,16,8", "4,32,8", "window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf",
     4 * 32 * 16 * 8),
    ("4,32,16", "4,16,8", "7,32,8", "window={size=4 pad=3_3 rhs_reversal=1}, dim_labels=0bf_0io->0bf",
     4 * 4 * 32 * 16 * 8),
    # a 3 x 3 convolution with zeros around it: 3 · 5 - 2 cells meet the image along each axis
    ("2,5,5,16", "3,3,16,8", "2,5,5,8", "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
     2 * 13 * 13 * 16 * 8),
    # every channel by itself
    ("2,5,5,16", "1,1,1,16", "2,5,5,16", "window={size=1x1}, dim_labels=b01f_01io->b01f, feature_group_count=16",
     2 * 25 * 16),
    ("2,6,6,16", "2,2,16,8", "2,3,3,8", "window={size=2x2 stride=2x2}, dim_labels=b01f_01io->b01f",
     2 * 9 * 4 * 16 * 8),
])  # fmt: skip
def test_a_convolution_is_counted_where_its_window_meets_the_input(lhs, rhs, out, attributes, macs):
    found = work(f"%a = f32[{lhs}] parameter(3)", f"%b = f32[{rhs}] parameter(4)",
                 f"%c = f32[{out}] convolution(%a, %b), {attributes}")  # fmt: skip
    assert found.products == 2 * macs


def test_compiled_programs_do_what_xla_counts_itself():
    """Of a program without loops, XLA's own count of the products, that of everything else apart."""
    def image(x, w):
        return jax.lax.conv_general_dilated(x, w, (2, 2), ((0, 1), (1, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC"))

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 9, 8, 3), (3, 3, 3, 5))]
    for function in (image, jax.grad(lambda x, w: (image(x, w) ** 2).sum(), (0, 1))):
        compiled = jax.jit(function).lower(*shapes).compile()
        found, own = count(hlo.parse(compiled.as_text())), compiled.cost_analysis()["flops"]
        assert 0.8 * own < found.flops <= own and found.unknown_calls == ()


def test_recomputation_is_counted():
    def loss(x, w, policy=None):
        body = lambda x, w: (jnp.tanh(x @ w), None)
        if policy:
            body = jax.checkpoint(body, policy=policy, prevent_cse=True)
        return jax.lax.scan(body, x, w)[0].sum()

    x, w = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((5, 16, 16), jnp.float32)
    one = 5 * 2 * 8 * 16 * 16
    for policy, products in ((None, 3), (jax.checkpoint_policies.nothing_saveable, 4)):
        step = jax.jit(jax.grad(lambda x, w, policy=policy: loss(x, w, policy), (0, 1)))
        found = count(hlo.parse(step.lower(x, w).compile().as_text()))
        assert found == executed.Work(products * one, (), 0, ())


def kernel(name, result):
    """As libtpu writes it: what the kernel says of itself goes over three lines."""
    return [f"%{n} = bf16[40,{size},128]{{2,1,0}} parameter({place})"
            for place, (n, size) in enumerate((("q", 512), ("k", 1024), ("v", 1024)), start=3)] + [
        "%mask = s8[1,4,8]{2,1,0} constant({...})",
        f'%a = {result} custom-call(%mask, %q, %k, %v), custom_call_target="tpu_custom_call", '
        'frontend_attributes={kernel_metadata={\n"xprof_metadata":"{\\"block_q\\": 1024}"\n}}, '
        f'metadata={{op_name="jit(step)/{name}/pallas_call"}}']  # fmt: skip


QKV = "bf16[40,1024,128]"
PRODUCT = 2 * 40 * 512 * 1024 * 128


@pytest.mark.parametrize("name,result,way,products", [
    ("splash_mha_fwd_residuals", "(bf16[40,512,128], f32[40,512])", "forward", 2),
    ("splash_mha_fwd_segmented_no_residuals", "bf16[40,512,128]", "forward", 2),
    ("splash_mha_dkv_segmented_no_residuals", f"(f32[1,40,512,128], {QKV}, {QKV})", "backward", 5),
    ("splash_mha_dkv_no_residuals", f"({QKV}, {QKV})", "backward", 4),
    ("splash_mha_dq_no_residuals", QKV, "backward of queries", 3),
])  # fmt: skip
def test_a_tpu_s_kernel_of_attention_is_counted_by_formula(name, result, way, products):
    found = executed.Kernel(way, 40, 512, 1024, 1, products * PRODUCT)
    assert work(*kernel(name, result)) == executed.Work(0, (found,), 0, ())


def test_a_kernel_that_is_not_known_is_named_and_not_counted():
    found = work(*kernel("megablox", QKV), '%b = f32[8]{0} custom-call(%p), custom_call_target="another"',
                 '%c = f32[8]{0} custom-call(%p), custom_call_target="Sharding"')  # fmt: skip
    assert found == executed.Work(0, (), 0, ("another", "tpu_custom_call jit(step)/megablox/pallas_call"))


@pytest.mark.parametrize("target,products,name", [("__cudnn$fmhaSoftmax", 2, "forward"),
                                                  ("__cudnn$fmhaSoftmaxBackward", 5, "backward")])  # fmt: skip
def test_a_gpu_s_kernel_of_attention_is_counted_by_formula(target, products, name):
    config = json.dumps({"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {
        "dimensions": ["2", "10", "512", "1024"]}}})  # fmt: skip
    found = work("%q = bf16[2,512,10,128]{3,2,1,0} parameter(3)",
                 f'%a = (bf16[2,10,512,128]{{3,1,2,0}}, u8[0]{{0}}) custom-call(%q, %q, %q), '
                 f'custom_call_target="{target}", backend_config={config}')  # fmt: skip
    only = executed.Kernel(name, 2 * 10, 512, 1024, 1, products * 2 * 2 * 10 * 512 * 1024 * 128)
    assert found == executed.Work(0, (only,), 0, ())


@pytest.mark.parametrize("target", ["__cublas$gemm", "__cublas$lt$matmul"])
def test_a_gpu_s_library_call_is_a_product(target):
    config = json.dumps({"gemm_backend_config": {"dot_dimension_numbers": {"lhs_contracting_dimensions": ["2"]}}})
    found = work(f'%a = (bf16[4,32,8]{{2,1,0}}, s8[4096]{{0}}) custom-call(%lhs, %rhs), custom_call_target="{target}", '
                 f"backend_config={config}")  # fmt: skip
    assert found == executed.Work(2 * 4 * 32 * 16 * 8, (), 0, ())


@pytest.mark.parametrize("target,operands,result", [
    ("__cudnn$convForward", ("2,5,5,16", "3,3,16,8"), "2,5,5,8"),
    ("__cudnn$convBackwardInput", ("2,5,5,8", "3,3,16,8"), "2,5,5,16"),
    ("__cudnn$convBackwardFilter", ("2,5,5,16", "2,5,5,8"), "3,3,16,8"),
])  # fmt: skip
def test_a_gpu_s_convolution_and_its_gradients_are_one_work(target, operands, result):
    found = work(f"%a = f32[{operands[0]}] parameter(3)", f"%b = f32[{operands[1]}] parameter(4)",
                 f'%c = (f32[{result}], u8[0]) custom-call(%a, %b), window={{size=3x3 pad=1_1x1_1}}, '
                 f'dim_labels=b01f_01io->b01f, custom_call_target="{target}"')  # fmt: skip
    assert found.products == 2 * 2 * 13 * 13 * 16 * 8


def test_what_is_not_understood_is_refused():
    for line, message in (("%c = f32[8] convolution(%lhs, %rhs), window={size=1}", "without dim_labels"),
                          ("%d = f32[8] dot(%nowhere, %rhs), lhs_contracting_dims={0}", "'nowhere' is not in")):
        with pytest.raises(hlo.HloError, match=message):
            work(line)


def test_flops_are_products_and_kernels():
    kernels = (executed.Kernel("forward", 1, 2, 2, 3, 4), executed.Kernel("backward", 1, 2, 2, 3, 10))
    found = dataclasses.replace(work(), products=3, kernels=kernels)
    assert (found.attention, found.flops) == (14, 17)
