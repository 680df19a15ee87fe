"""Floating-point operations that a compiled program executes on one device, counted from its text.

Matrix products and convolutions by their shapes, kernels of attention by formula, loops multiplied out: recomputation
and padding are in it. A multiplication and an addition are two; what is done element by element is not counted.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import NamedTuple

import numpy as np

from wanjax import hlo, hlo_loops
from wanjax.hlo import Computation, HloError, Instruction, Module
from wanjax.hlo_loops import Totals

# Products of [N, M] by d that a kernel makes: forward q kᵀ and p v; backward q kᵀ and dO vᵀ again, then dv, dk and dq.
_FORWARD, _BACKWARD = 2, 5
# JAX's splash kernel names its parts so; apart, dq and dk with dv each make q kᵀ and dO vᵀ, fused once.
_SPLASH = re.compile(r"splash_m[hq]a_(fwd|dkv|dq)\w*")
_SPLASH_PRODUCTS = {"fwd": ("forward", _FORWARD), "dkv": ("backward", 4), "dkv fused": ("backward", _BACKWARD),
                    "dq": ("backward of queries", 3)}  # fmt: skip
# Custom calls without products: they move, allocate, sort, draw numbers or say something to the compiler.
_NO_PRODUCTS = re.compile(
    r"Sharding|SPMD\w*|AllocateBuffer|annotate_device_placement|MoveTo(Host|Device)|PinTo\w*|Layout\w*|TopK\w*|Slice\w*"
    r"|\w*Barrier\w*|InspectSharding|AssumeGatherIndicesInBound|ConcatBitcast|ResizeBilinear|\w*[tT]hreefry\w*|Pad\w*"
    r"|__cub\$\w+|xla_ffi_python_cpu_callback|ReduceWindow\w*|Gather\w*|Scatter\w*|Sort\w*|RngBitGenerator|dynamic\w*"
    r"|PrepareAsyncCall(Start|Done)"
)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Of attention, on one device.

    Attributes:
        way: "forward" or "backward"; "backward of queries" where that is a kernel of its own.
        heads, queries, keys: that one run of it takes, padding included; heads of all its clips.
        count: how often it runs.
        flops: of all runs.
    """

    way: str
    heads: int
    queries: int
    keys: int
    count: int
    flops: int


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one device in one run.

    Attributes:
        products: operations of matrix products and convolutions.
        kernels: of attention, most operations first; none where attention has no kernel and is among the products.
        unknown_loops: loops with products whose number of turns is not known: counted once.
        unknown_calls: targets of custom calls whose operations are not known, and not counted.
    """

    products: int
    kernels: tuple[Kernel, ...]
    unknown_loops: int
    unknown_calls: tuple[str, ...]

    @property
    def attention(self) -> int:
        """Operations of all kernels."""
        return sum(kernel.flops for kernel in self.kernels)

    @property
    def flops(self) -> int:
        return self.products + self.attention


def count(module: Module) -> Work:
    """Of a compiled program.

    Raises: HloError: a product whose shapes are not understood.
    """
    totals, unknown_loops = hlo_loops.fold(
        module, of_instruction, lambda totals: sum(operations for _, operations in totals.values())
    )
    products, kernels, unknown = 0, [], []
    for key, (number, operations) in totals.items():
        if isinstance(key, Kind):
            kernels.append(Kernel(*key, number, operations))
        elif key[0] == "product":
            products += operations
        else:
            unknown.append(str(key[1]))
    return Work(products, tuple(sorted(kernels, key=lambda each: -each.flops)), unknown_loops, tuple(sorted(unknown)))


class Kind(NamedTuple):
    """Of a kernel of attention, as :class:`Kernel` has it."""

    way: str
    heads: int
    queries: int
    keys: int


def of_instruction(computation: Computation, each: Instruction) -> Totals | None:
    """How many an instruction is, and of how many floating-point operations: by ("product", dtype of its operands),
    :class:`Kind` or ("unknown", target); None: those of the computations that it calls, if any.

    Raises: HloError: a product whose shapes are not understood.
    """
    if each.base == "dot":
        return _product(computation, each, _dot(computation, each))
    if each.base == "convolution":
        lhs, rhs = (hlo.dimensions(_shape(computation, name)) for name in each.operands[:2])
        return _product(computation, each, _convolution(each, lhs, rhs, hlo.dimensions(each.shape)))
    return _custom(computation, each) if each.base == "custom-call" else None


def _product(computation: Computation, each: Instruction, number: int) -> Totals:
    return {("product", hlo.arrays(_shape(computation, each.operands[0]))[0][0]): (1, number)}


def _shape(computation: Computation, name: str) -> str:
    if name not in computation.instructions:
        raise HloError(f"the operand {name!r} is not in its computation {computation.name!r}")
    return computation.instructions[name].shape


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _dot(computation: Computation, each: Instruction) -> int:
    lhs = hlo.dimensions(_shape(computation, each.operands[0]))
    contracted = math.prod(lhs[axis] for axis in _numbers(each.attribute("lhs_contracting_dims")))
    return 2 * math.prod(hlo.dimensions(_result(each))) * contracted


def _result(each: Instruction) -> str:
    """Shape of the result of an operation, of one that is started, too."""
    return hlo.elements(each.shape)[1] if each.opcode != each.base else each.shape


def _convolution(each: Instruction, lhs: tuple[int, ...], rhs: tuple[int, ...], out: tuple[int, ...]) -> int:
    """By the positions at which a window's cell lies on the input: padding and dilation are no work.

    A TPU's compiler writes matrix products as convolutions, batches of them as windows over padding.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.attributes)
    if labels is None:
        raise HloError(f"a convolution without dim_labels: {each.attributes[:200]}")
    of_lhs, of_rhs, of_out = labels.groups()
    window = dict(re.findall(r"(\w+)=([\w\-]+)", each.attribute("window")))
    positions = 1
    for place, axis in enumerate(sorted(set(of_rhs) - set("io"))):
        def setting(name: str, default: str, place: int = place) -> list[int]:
            own = window[name].split("x")[place] if name in window else default
            return [int(n) for n in re.findall(r"-?\d+", own.replace("_", " "))]

        (stride,), (spread,), (apart,) = (setting(name, "1") for name in ("stride", "lhs_dilate", "rhs_dilate"))
        low = setting("pad", "0_0")[0]
        positions *= _valid(lhs[of_lhs.index(axis)], rhs[of_rhs.index(axis)], out[of_out.index(axis)], stride, low,
                            spread, apart)  # fmt: skip
    groups = int(each.attribute("batch_group_count") or 1)
    batch, features = lhs[of_lhs.index("b")] // groups, out[of_out.index("f")]
    return 2 * rhs[of_rhs.index("i")] * features * batch * positions


def _valid(size: int, kernel: int, out: int, stride: int, low: int, spread: int, apart: int) -> int:
    """Pairs of an output and a cell of the window that meet a value of the input along one axis.

    Args:
        size, kernel, out: of input, window and result.
        stride: of the window.
        low: padding before the input.
        spread, apart: from one value of the input, and of the window, to the next.
    """
    if kernel == 1 and low == 0 and (out - 1) * stride < size and spread == 1:
        return out
    total, reach = 0, (size - 1) * spread
    for cell in range(kernel):
        start = cell * apart - low  # of the first output, among the spread values of the input
        first, last = max(0, -(start // stride)), min(out - 1, (reach - start) // stride)
        if last < first:
            continue
        if spread == 1:
            total += last - first + 1
        else:
            total += int(np.count_nonzero((start + stride * np.arange(first, last + 1)) % spread == 0))
    return total


def _custom(computation: Computation, each: Instruction) -> Totals | None:
    found = re.search(r'custom_call_target="([^"]*)"', each.attributes)
    target = found[1] if found else ""
    if target == "tpu_custom_call":
        return _splash(computation, each)
    if target.startswith("__cudnn$fmha"):
        return _cudnn_attention(computation, each, target)
    if target.startswith("__cudnn$conv"):
        return _product(computation, each, _cudnn_convolution(computation, each, target))
    if target.startswith(("__cublas$gemm", "__cublas$lt$matmul")):
        return _product(computation, each, _cublas(computation, each))
    if each.called() or _NO_PRODUCTS.fullmatch(target):
        return None
    return {("unknown", target): (1, 0)}


def _splash(computation: Computation, each: Instruction) -> Totals:
    """q [K, N, d] and k [K, M, d] are the first of three axes in floating point; the mask stands before them."""
    found = _SPLASH.search(each.attributes)
    if found is None:
        name = re.search(r'op_name="([^"]*)"', each.attributes)
        return {("unknown", f"tpu_custom_call {name[1] if name else ''}".strip()): (1, 0)}
    operands = [hlo.arrays(_shape(computation, name))[0] for name in each.operands]
    (heads, queries, size), (_, keys, _) = [
        shape for dtype, shape in operands if len(shape) == 3 and dtype in ("bf16", "f16", "f32")
    ][:2]
    # the fused kernel gives dq beside dk and dv
    fused = found[1] == "dkv" and len(hlo.arrays(_result(each))) > 2
    way, products = _SPLASH_PRODUCTS["dkv fused" if fused else found[1]]
    return {Kind(way, heads, queries, keys): (1, products * 2 * heads * queries * keys * size)}


def _cudnn_attention(computation: Computation, each: Instruction, target: str) -> Totals:
    """The backend's configuration states [B, K, N, M]; d is what is left of q's size."""
    config = _config(each)["cudnn_fmha_backend_config"]
    logits = [int(n) for n in config["intermediate_tensor_shape"]["dimensions"]]
    size = math.prod(hlo.dimensions(_shape(computation, each.operands[0]))) // math.prod(logits[:3])
    backward = "Backward" in target
    kind = Kind("backward" if backward else "forward", logits[0] * logits[1], logits[2], logits[3])
    return {kind: (1, (_BACKWARD if backward else _FORWARD) * 2 * math.prod(logits) * size)}


def _cudnn_convolution(computation: Computation, each: Instruction, target: str) -> int:
    """Work of a gradient is that of the convolution whose labels and window it states."""
    first, second = (hlo.dimensions(_shape(computation, name)) for name in each.operands[:2])
    result = hlo.dimensions(each.shape)
    if "BackwardInput" in target:
        return _convolution(each, result, second, first)
    if "BackwardFilter" in target:
        return _convolution(each, first, result, second)
    return _convolution(each, first, second, result)


def _cublas(computation: Computation, each: Instruction) -> int:
    numbers = _config(each)["gemm_backend_config"]["dot_dimension_numbers"]
    lhs = hlo.dimensions(_shape(computation, each.operands[0]))
    contracted = math.prod(lhs[int(axis)] for axis in numbers["lhs_contracting_dimensions"])
    return 2 * math.prod(hlo.dimensions(each.shape)) * contracted


def _config(each: Instruction) -> dict:
    start = each.attributes.find("backend_config=")
    if start < 0:
        raise HloError(f"a kernel without backend_config: {each.attributes[:200]}")
    found, _ = json.JSONDecoder().raw_decode(each.attributes[start + len("backend_config=") :])
    return found
