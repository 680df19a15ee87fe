"""Options of compilers travel with the program, and a compiler that does not know one says so."""

import jax
import jax.numpy as jnp
import pytest

from wanjax import compiler_options

SHAPE = jax.ShapeDtypeStruct((2,), jnp.float32)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])  # a GPU's are known to every build of XLA, a TPU's to libtpu alone
def test_every_option_is_one_that_the_compiler_knows(platform):
    options = compiler_options.of(platform)
    jax.jit(jnp.sin, compiler_options=options).lower(SHAPE).compile()
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_gpu_no_such_option"):
        jax.jit(jnp.sin, compiler_options={**options, "xla_gpu_no_such_option": True}).lower(SHAPE).compile()


def test_the_table_stays_as_it_is_written():
    compiler_options.of("gpu").clear()
    assert compiler_options.of("gpu") and set(compiler_options.OPTIONS) == {"cpu", "gpu", "tpu"}
