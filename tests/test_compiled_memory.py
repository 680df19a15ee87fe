"""Memory of a device, as the compiler states it or as the message says with which it refuses."""

import os

import jax
import jax.numpy as jnp
import pytest

from wanjax import hlo, partition
from wanjax.compiled_memory import CompileError, compile_with_memory, refused, text_of

# libtpu 0.0.52, for one v5e
OVER_IN_TEMPORARIES = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (27.10G) exceeds available HBM (15.75G). HLO module: jit_apply."
)
OVER_IN_ALL = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 512.00M of "
    "256.50M hbm. Exceeded hbm capacity by 255.50M."
)


def test_a_refusal_says_what_is_needed_and_what_is_there():
    assert refused(OVER_IN_TEMPORARIES) == (round(27.10 * 2**30), round(15.75 * 2**30))
    assert refused(OVER_IN_ALL) == (512 * 2**20, round(256.5 * 2**20))
    assert refused("INTERNAL: something else") is None


class _Refusing:
    def __init__(self, message):
        self.message = message

    def compile(self, options):
        raise jax.errors.JaxRuntimeError(self.message)


def test_a_refused_program_has_no_temporary_memory_and_another_error_is_passed_on():
    compiled, memory = compile_with_memory(_Refusing(OVER_IN_ALL), {})
    assert compiled is None
    assert (memory.peak, memory.available, memory.temporary) == (512 * 2**20, round(256.5 * 2**20), None)
    with pytest.raises(CompileError, match="INTERNAL: no such kernel"):
        compile_with_memory(_Refusing("INTERNAL: no such kernel"), {})


def test_a_program_that_cannot_be_read_has_no_text_but_that_of_a_dump(tmp_path):
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    assert "ENTRY" in text_of(lowered.compile())
    compiled, _ = compile_with_memory(lowered, {}, dump=tmp_path)
    assert os.listdir(tmp_path)

    class Unreadable:
        def as_text(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    assert text_of(Unreadable()) is None
    dumped = text_of(Unreadable(), tmp_path)
    assert hlo.parse(dumped) == hlo.parse(compiled.as_text())


def test_arguments_count_by_shards_and_a_donated_one_once():
    mesh = partition.make_mesh({"fsdp": 8})
    held = jax.ShapeDtypeStruct((64, 1024), jnp.float32, sharding=partition.batch_sharding(mesh))
    share = 64 * 1024 * 4 // 8
    for donated, results in ((True, 0), (False, share)):
        step = jax.jit(lambda x: x + 1, donate_argnums=0 if donated else ())
        _, memory = compile_with_memory(step.lower(held), held)
        assert (memory.arguments, memory.results, memory.host) == (share, results, 0)
        assert share + results <= memory.peak < share + results + share // 2


def test_what_lies_in_host_memory_is_not_the_device_s():
    mesh = partition.make_mesh({"fsdp": 8})
    place = partition.batch_sharding(mesh)
    held = [jax.ShapeDtypeStruct((64, 1024), jnp.float32, sharding=place.with_memory_kind("pinned_host")),
            jax.ShapeDtypeStruct((8,), jnp.float32, sharding=place)]  # fmt: skip
    _, memory = compile_with_memory(jax.jit(lambda far, near: jax.device_put(far, place)[:, :8] * near).lower(*held),
                                    held)  # fmt: skip
    assert (memory.arguments, memory.host) == (4, 64 * 1024 * 4 // 8)
