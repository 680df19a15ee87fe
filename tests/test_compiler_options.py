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


def test_training_on_a_chip_has_options_of_its_own_beside_those_of_the_platform():
    assert not compiler_options.of(_device("tpu", "TPU v5p"))
    assert compiler_options.of_training(_device("tpu", "TPU v5p")) == compiler_options.TRAINING["TPU v5p"]
    assert compiler_options.of_training(_device("tpu", "TPU v6 lite")) == {}
    assert compiler_options.of_training(_device("gpu")) == compiler_options.of(_device("gpu")) != {}
