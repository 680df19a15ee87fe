"""Options of compilers travel with the program, and a compiler that does not know one says so."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from wanjax import compiler_options

SHAPE = jax.ShapeDtypeStruct((2,), jnp.float32)


def _device(platform, kind=""):
    return SimpleNamespace(platform=platform, device_kind=kind)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])  # a GPU's are known to every build of XLA, a TPU's to libtpu alone
def test_every_option_is_one_that_the_compiler_knows(platform):
    options = compiler_options.of_training(_device(platform))
    jax.jit(jnp.sin, compiler_options=options).lower(SHAPE).compile()
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_gpu_no_such_option"):
        jax.jit(jnp.sin, compiler_options={**options, "xla_gpu_no_such_option": True}).lower(SHAPE).compile()


@pytest.mark.parametrize("kinds", [("TPU v5", "TPU v5p"), ("TPU v6 lite", "TPU v6e")])
def test_training_on_a_chip_has_options_of_its_own_beside_those_of_the_platform(kinds):
    of_step = [compiler_options.of_training(_device("tpu", kind)) for kind in kinds]
    assert of_step[0] == of_step[1] == compiler_options.TRAINING[kinds[0]]  # one chip by two names
    # whose sparse cores send what is gathered and scattered
    for op in ("all_gather", "reduce_scatter"):
        assert of_step[0][f"xla_tpu_enable_sparse_core_collective_offload_{op}"] == "true"
    assert not compiler_options.of(_device("tpu", kinds[0]))


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU7x"])
def test_chips_whose_compiler_needs_no_telling_have_none(kind):
    assert compiler_options.of_training(_device("tpu", kind)) == {}


def test_a_gpu_trains_with_the_options_of_its_platform():
    assert compiler_options.of_training(_device("gpu")) == compiler_options.of(_device("gpu")) != {}
