"""float32 products are float32 on accelerators too, forward and backward, in every network and objective."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from wanjax import config, precision, programs

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "light_scenes_tiny.py"
EVERY_TERM = {f"objective.{term}.weight": 1.0 for term in (
    "velocity", "light", "light_consistency", "temporal_luminance", "shadow", "change_weight")}  # fmt: skip
PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution).*?: \(tensor<(?:\d+x)*(\w+)>, tensor<(?:\d+x)*(\w+)>\)")


def products(dtype, **changes):
    """Of a training step as a compiler gets it: [(types of the operands, whether at the highest precision)]."""
    overrides = {"model.layers": 4, "model.width": 32, "model.heads": 2, "model.ffn": 32, "data.batch": 1,
                 "model.dtype": dtype, "optimizer.name": "adamw", **changes}  # fmt: skip
    experiment = config.load(CONFIG, overrides)
    # the plain formula's gradient multiplies float32 by operands of 16 bits, to which a shorter format is as good
    model = dataclasses.replace(experiment.model, attention="blockwise")
    experiment, mesh = programs.lay_out(dataclasses.replace(experiment, model=model), jax.devices()[:1])
    text = programs.train(experiment, mesh).lower().as_text()
    found = [(found.groups(), "HIGHEST" in line) for line in text.splitlines() if (found := PRODUCT.search(line))]
    assert len(found) > 50
    return found


@pytest.mark.parametrize("changes", [EVERY_TERM, {"lora.rank": 2, "train.init_from": "weights"}],
                         ids=["objectives", "factors"])  # fmt: skip
def test_every_float32_product_of_a_training_step_is_one(changes):
    found = products("bfloat16", **changes)
    assert {types for types, _ in found} >= {("f32", "f32"), ("bf16", "bf16")}
    assert {highest for types, highest in found if types == ("f32", "f32")} == {True}
    assert {highest for types, highest in found if types == ("bf16", "bf16")} == {False}


def test_a_precision_that_the_caller_sets_is_obeyed():
    assert precision.of("float32") is jax.lax.Precision.HIGHEST and precision.of(jnp.bfloat16) is None
    with jax.default_matmul_precision("tensorfloat32"):
        assert precision.of("float32") is None
        with precision.within("float32"):
            assert jax.config.jax_default_matmul_precision == "tensorfloat32"
    with precision.within("float32"):
        assert jax.config.jax_default_matmul_precision == "highest"
