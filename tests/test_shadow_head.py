"""The shadow head: what it reads, where its cells lie, that it can learn, and that nobody else has to know of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import dit_case
from wanjax.light.losses import shadow_loss
from wanjax.models import rows
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows.shadow_head import KEY
from wanjax.models.shadow_head import ShadowHead, ShadowHeadConfig

CONFIG = DiTConfig(width=48, heads=4, layers=4, ffn=64, in_channels=4, out_channels=4, freq_dim=24, text_dim=20)
MODEL = WanDiT(CONFIG)
HEAD = ShadowHead(ShadowHeadConfig(depths=(0.25, 0.5), width=8), MODEL, cells=2)
LATENTS = (5, 4, 8)  # F, h, w: 5 × 2 × 4 tokens


def states(seed, batch=2):
    return [jax.random.normal(k, (batch, 40, CONFIG.width)) for k in jax.random.split(jax.random.key(seed), 2)]


def trained(seed=0):
    """Parameters of a head, every one of them random."""
    shapes = rows.shapes(HEAD.rows, jnp.float32)[KEY]
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten([0.3 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])


def test_the_default_taps_are_a_third_a_half_and_two_thirds_of_the_depth():
    config = ShadowHeadConfig()
    assert config.taps(6) == (2, 3, 4) and config.taps(40) == (13, 20, 27)
    with pytest.raises(ValueError, match=r"of 2 layers are blocks \(1, 1, 1\)"):
        config.taps(2)


def test_there_is_one_logit_per_cell_and_a_token_speaks_for_its_own_cells():
    params, plain = trained(), states(0)
    logits = HEAD.apply(params, plain, LATENTS)
    assert logits.shape == (2, 5, 8, 16) and logits.dtype == jnp.float32
    frame, row, column = 2, 1, 3
    token = (frame * 2 + row) * 4 + column
    changed = [s.at[:, token].add(other[:, token]) for s, other in zip(plain, states(3), strict=True)]
    moved = np.abs(HEAD.apply(params, changed, LATENTS) - logits).max(axis=0) > 1e-6
    expected = np.zeros((5, 8, 16), bool)
    expected[frame - 1 : frame + 2, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = True  # frames beside it too
    np.testing.assert_array_equal(moved, expected)


def test_every_tap_is_read():
    params, plain = trained(), states(0)
    for i in range(2):
        other = [s + (i == j) * jax.random.normal(jax.random.key(7), s.shape) for j, s in enumerate(plain)]
        assert not np.allclose(HEAD.apply(params, other, LATENTS), HEAD.apply(params, plain, LATENTS))
    with pytest.raises(ValueError, match="1 hidden states"):
        HEAD.apply(params, plain[:1], LATENTS)


def test_a_new_head_says_half_everywhere_and_leaves_the_transformer_alone():
    params, plain = HEAD.init(jax.random.key(0)), states(0)
    assert jax.tree.map(lambda p: p.shape, params) == jax.tree.map(lambda s: s.shape,
                                                                    rows.shapes(HEAD.rows, jnp.float32)[KEY])
    assert not HEAD.apply(params, plain, LATENTS).any()
    gradient = jax.grad(lambda s: HEAD.apply(params, s, LATENTS).sum())(plain)
    assert not any(np.any(g) for g in gradient)


def test_it_learns_a_shadow_that_the_states_tell_and_that_reaches_over_frames():
    plain = states(1, batch=8)
    signal = plain[0][..., 0].reshape(8, 5, 2, 4)
    before = jnp.concatenate([jnp.zeros_like(signal[:, :1]), signal[:, :-1]], axis=1)  # what the frame before says
    truth = jnp.repeat(jnp.repeat((before > 0).astype(jnp.float32), 4, axis=2), 4, axis=3)

    @jax.jit
    def step(params):
        loss = lambda p: shadow_loss(HEAD.apply(p, plain, LATENTS), truth, jnp.zeros(8)).mean()
        value, gradient = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 1.0 * g, params, gradient), value

    params = HEAD.init(jax.random.key(0))
    _, first = step(params)
    for _ in range(150):
        params, last = step(params)
    right = (HEAD.apply(params, plain, LATENTS) > 0) == (truth > 0.5)
    assert float(last) < 0.5 * float(first) and float(right.mean()) > 0.9


def test_other_software_has_no_names_for_it():
    assert rows.count(HEAD.rows) == 2 * 48 * 8 + 8 + 3 * 8 * 8 + 8 + 8 * 16 + 16
    with pytest.raises(ValueError, match="shadow_head/projection/kernel has no name in the diffusers layout"):
        rows.export_tensors(HEAD.rows, {KEY: trained()})


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    inputs = (rng.standard_normal((2, *LATENTS, 4)).astype(np.float32), rng.uniform(0, 1000, 2).astype(np.float32),
              rng.standard_normal((2, 5, 20)).astype(np.float32))
    return dit_case.params(CONFIG, seed=5), inputs


def test_taps_give_the_states_of_a_shorter_stack_and_the_same_velocity(case):
    params, inputs = case
    velocity, found = MODEL.apply_with_taps({"params": params}, *inputs, taps=(1, 3))
    np.testing.assert_array_equal(velocity, MODEL.apply({"params": params}, *inputs))
    for layers, state in zip((1, 3), found, strict=True):
        short = WanDiT(dataclasses.replace(CONFIG, layers=layers))
        cut = {**params, "blocks": jax.tree.map(lambda p, n=layers: p[:n], params["blocks"])}
        _, (last,) = short.apply_with_taps({"params": cut}, *inputs, taps=(layers,))
        np.testing.assert_array_equal(state, last)
    for taps in ((0, 1), (5,), ()):
        with pytest.raises(ValueError, match="from 1 to 4"):
            MODEL.apply_with_taps({"params": params}, *inputs, taps=taps)


def test_taps_keep_no_other_layer_for_the_backward_pass(case):
    params, inputs = case
    model = WanDiT(dataclasses.replace(CONFIG, remat="full"))

    def loss(params, taps):
        if not taps:
            return model.apply({"params": params}, *inputs).sum()
        velocity, found = model.apply_with_taps({"params": params}, *inputs, taps=taps)
        return velocity.sum() + sum(s.sum() for s in found)

    def kept(taps):
        """Values that the forward scan keeps per layer."""
        _, pull = jax.eval_shape(lambda p: jax.vjp(lambda q: loss(q, taps), p), params)
        return sum(leaf.size for leaf in jax.tree.leaves(pull))

    state = 2 * 40 * CONFIG.width
    assert kept((1, 2, 3)) - kept(()) < state


def test_a_transformer_ignores_a_head_beside_it(case):
    params, inputs = case
    np.testing.assert_array_equal(MODEL.apply({"params": {**params, KEY: trained()}}, *inputs),
                                  MODEL.apply({"params": params}, *inputs))
