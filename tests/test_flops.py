"""The formula counts what the network computes, and nothing that it recomputes."""
import dataclasses
import math

import jax
import jax.extend
import jax.numpy as jnp
import pytest

from wanjax import config, flops
from wanjax.models.dit import WanDiT
from wanjax.models.dit_config import DiTConfig
from wanjax.models.rows.dit import dit_rows


def products(jaxpr):
    """FLOPs of all matrix products of a jaxpr, those of a scanned body as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
        assert equation.primitive.name != "while", "how often its body runs is not known"
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(products(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params))
    return total


def block_products(clips, latents, text_tokens, **sizes):
    """FLOPs of one block as the network is traced: those of three layers less those of two."""
    counts = []
    for layers in (2, 3):
        model = WanDiT(DiTConfig(layers=layers, in_channels=4, out_channels=4, **sizes))
        params = jax.eval_shape(model.init, jax.random.key(0))["params"]
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (
            (clips, *latents, 4), (clips,), (clips, text_tokens, sizes["text_dim"]))]
        traced = jax.make_jaxpr(lambda p, x, t, c, apply=model.apply: apply({"params": p}, x, t, c))(params, *arrays)
        counts.append(products(traced.jaxpr))
    return counts[1] - counts[0]


@pytest.mark.parametrize(("latents", "text_tokens"), [((3, 4, 8), 5), ((1, 8, 4), 17)])
def test_the_formula_is_what_the_blocks_multiply(latents, text_tokens):
    sizes = dict(width=24, heads=2, ffn=40, freq_dim=16, text_dim=12)
    f, h, w = latents
    one = flops.forward(DiTConfig(layers=1, **sizes), f * h * w // 4, text_tokens)
    assert block_products(2, latents, text_tokens, **sizes) == 2 * one
    assert flops.forward(DiTConfig(layers=7, **sizes), f * h * w // 4, text_tokens) == 7 * one


def test_14b_at_720p_takes_19_6_petaflops_a_clip_most_of_it_in_self_attention():
    experiment = config.load("configs/t2v_a14b.py")
    tokens = 21 * 45 * 80
    step = flops.training(experiment.model, tokens, experiment.text.length)
    assert step == 3 * flops.forward(experiment.model, tokens, experiment.text.length)
    assert step / 1e15 == pytest.approx(19.6, abs=0.05)
    attention = 3 * experiment.model.layers * 4 * tokens**2 * experiment.model.width
    assert attention / step == pytest.approx(0.72, abs=0.01)


def test_recomputing_is_not_counted():
    sizes = dict(width=24, heads=2, layers=2, ffn=40)
    assert flops.training(DiTConfig(remat="full", **sizes), 64, 5) == flops.training(DiTConfig(**sizes), 64, 5)


def test_a_lora_counts_frozen_products_once_going_backward_and_factors_thrice():
    experiment = config.load("configs/t2v_a14b_lora.py")
    model, size = experiment.model, (32760, 512)
    table = dit_rows(model)
    factors = experiment.lora.rows(table)
    whole, found = flops.training(model, *size), flops.lora_training(model, *size, factors)
    # per block: q, k, v, o of the video twice over, of the text k and v, and the feed-forward
    wide, narrow = 2 * 32 * 2 * model.width, 2 * 32 * (model.width + model.ffn)
    beside = model.layers * (32760 * (6 * wide + 2 * narrow) + 512 * 2 * wide)
    assert found == whole - flops.matmul(model, *size) + 3 * beside
    outside = dataclasses.replace(experiment.lora, targets=("head/projection/kernel",)).rows(table)
    assert flops.lora_training(model, *size, outside) == whole - flops.matmul(model, *size)
