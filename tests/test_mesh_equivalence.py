"""Eight simulated devices give the loss, every gradient and the samples of one device, whatever the mesh.

Every parameter is random: a zero head or table would hide what stands before it. Six heads and nine tokens divide over
hardly any of the axes, and with timesteps of their own the tokens' modulation is sharded and padded with them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import dit_case
from wanjax import denoise, partition
from wanjax.denoise import Batch, Execution
from wanjax.experts import Expert
from wanjax.models import rows
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows.dit import dit_rows
from wanjax.models.shadow_head import KEY, ShadowHead, ShadowHeadConfig
from wanjax.sample_config import SampleConfig

CONFIG = DiTConfig(width=36, heads=6, layers=2, ffn=24, in_channels=4, out_channels=4, freq_dim=8, text_dim=8)
TOKENS = 9
HEAD = ShadowHeadConfig(depths=(0.5, 1.0), width=8)
# every axis alone, every pair, and all that changes how a block is computed: remat, sequence, attention
MESHES = [
    ({"data": 8}, {}),
    ({"fsdp": 8}, {"remat": "dots"}),
    ({"seq": 8}, {"sequence": "ring"}),  # devices that have nothing but padding
    ({"tensor": 8}, {}),  # more devices than heads
    ({"data": 2, "fsdp": 4}, {"remat": "full"}),
    ({"data": 2, "seq": 4}, {"remat": "attention", "attention": "blockwise"}),  # rings of two pairs that share heads
    ({"data": 4, "tensor": 2}, {"remat": "attention"}),
    ({"fsdp": 4, "seq": 2}, {"sequence": "heads", "remat": "offload"}),
    ({"fsdp": 4, "tensor": 2}, {"attention": "blockwise"}),
    ({"seq": 4, "tensor": 2}, {"sequence": "ring", "attention": "blockwise", "remat": "full"}),
]


def _batch():
    rng = np.random.default_rng(3)
    x0, noise = rng.standard_normal((2, 8, 3, 2, 6, 4)).astype(np.float32)
    return {"x0": x0, "noise": noise, "sigma": rng.uniform(0, 1, 8).astype(np.float32),
            "timestep": rng.uniform(0, 1000, (8, TOKENS)).astype(np.float32),
            "text": rng.standard_normal((8, 5, CONFIG.text_dim)).astype(np.float32)}  # fmt: skip


def _table(model, head):
    return (*dit_rows(model.config), *(head.rows if head else ()))


def _loss_and_gradients(model, params, batch, head=None):
    """Loss and gradients as numpy; params placed where the mesh wants them, the gradients too."""

    def loss(params, batch):
        sigma = batch["sigma"][:, None, None, None, None]
        noisy = (1 - sigma) * batch["x0"] + sigma * batch["noise"]
        if head is None:
            velocity, extra = model.apply({"params": params}, noisy, batch["timestep"], batch["text"]), 0.0
        else:
            inputs = noisy, 1000 * batch["sigma"], batch["text"]
            velocity, states = model.apply_with_taps({"params": params}, *inputs, taps=head.taps)
            extra = jnp.mean(jnp.square(head.apply(params[KEY], states, noisy.shape[1:4])))
        return jnp.mean(jnp.square(velocity - (batch["noise"] - batch["x0"]))) + extra

    placed = None
    if model.mesh is not None:
        table = _table(model, head)
        placed = partition.shardings(model.mesh, rows.logical_axes(table), rows.shapes(table, jnp.float32))
        params = jax.device_put(params, placed)
        batch = jax.device_put(batch, partition.batch_sharding(model.mesh))
    step = jax.jit(jax.value_and_grad(loss), out_shardings=None if placed is None else (None, placed))
    # one program at a time: two in flight can starve each other's collectives on simulated devices
    value, gradients = jax.block_until_ready(step(params, batch))
    return float(value), jax.tree.map(np.asarray, gradients)


@pytest.fixture(scope="module")
def params():
    return dit_case.params(CONFIG, seed=5)


@pytest.fixture(scope="module")
def alone(params):
    return _loss_and_gradients(WanDiT(CONFIG), params, _batch())


def _assert_same(found, expected, head=None):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for row in _table(WanDiT(CONFIG), head):
        one, many = rows.pick(expected[1], row), rows.pick(found[1], row)
        norm = np.linalg.norm(one)
        assert norm > 0, row.path
        assert np.linalg.norm(many - one) <= 1e-5 * norm, row.path


@pytest.mark.parametrize("sizes,how", MESHES, ids=str)
def test_loss_and_every_gradient_agree_with_one_device(sizes, how, params, alone):
    model = WanDiT(dataclasses.replace(CONFIG, **how), partition.make_mesh(sizes))
    _assert_same(_loss_and_gradients(model, params, _batch()), alone)


def test_a_shadow_head_reads_the_same_states_on_every_mesh(params):
    """States without padding; a timestep per clip."""
    rng, results = np.random.default_rng(6), []
    for mesh in (None, partition.make_mesh({"fsdp": 2, "seq": 2, "tensor": 2})):
        head = ShadowHead(HEAD, WanDiT(dataclasses.replace(CONFIG, remat="full"), mesh))
        if not results:
            own = rows.tree(head.rows, lambda row: 0.3 * rng.standard_normal(row.full_shape).astype(np.float32))
        results.append(_loss_and_gradients(head.model, {**params, **own}, _batch(), head))
    _assert_same(results[1], results[0], head)


def test_samples_are_those_of_one_device(params):
    batch, config = _batch(), SampleConfig(steps=2, shift=5.0, boundary=0.0, guidance_high=3.0)
    given = Batch(batch["noise"][:4], batch["text"][:4], batch["text"][4:])
    samples = []
    for sizes in (None, {"data": 2, "seq": 4}, {"fsdp": 2, "seq": 2, "tensor": 2}):
        model = WanDiT(CONFIG, None if sizes is None else partition.make_mesh(sizes))
        execution = Execution(holding="one", passes="batched")
        samples += denoise.denoise({"high": Expert.of(model, params)}, [given], config, execution=execution)
    for sample in samples[1:]:
        np.testing.assert_allclose(sample, samples[0], atol=1e-5)


def test_what_does_not_divide_over_the_mesh_is_refused(params):
    mesh = partition.make_mesh({"fsdp": 2, "seq": 4})
    with pytest.raises(ValueError, match="6 heads do not divide over the mesh axis seq of size 4: .*'auto' or 'ring'"):
        WanDiT(dataclasses.replace(CONFIG, sequence="heads"), mesh)
    batch = _batch()
    with pytest.raises(ValueError, match="3 clips do not divide over the 2 devices of mesh axes data and fsdp"):
        WanDiT(CONFIG, mesh).apply({"params": params}, batch["x0"][:3], np.zeros(3), batch["text"][:3])
