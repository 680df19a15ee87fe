"""Eight simulated devices give the loss and every gradient of one device, whatever the mesh.

Every parameter is random: a zero head or table would hide what stands before it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parity import dit_case
from wanjax import partition
from wanjax.models import rows
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows.dit import dit_rows
from wanjax.models.shadow_head import KEY, ShadowHead, ShadowHeadConfig

CONFIG = DiTConfig(width=48, heads=4, layers=2, ffn=64, in_channels=4, out_channels=4, freq_dim=24, text_dim=20)
MESHES = {
    "fsdp=8, keeping activations": ({"fsdp": 8}, "none"),
    "data=2,fsdp=2,tensor=2, recomputing all": ({"data": 2, "fsdp": 2, "tensor": 2}, "full"),
    "fsdp=4,seq=2, keeping linear layers": ({"fsdp": 4, "seq": 2}, "dots"),
    "fsdp=4,seq=2, keeping on the host": ({"fsdp": 4, "seq": 2}, "offload"),
}
HEAD = ShadowHeadConfig(depths=(0.5, 1.0), width=8)


def _batch():
    rng = np.random.default_rng(3)
    x0, noise = rng.standard_normal((2, 8, 2, 4, 4, 4)).astype(np.float32)
    timestep = rng.uniform(0, 1000, 8).astype(np.float32)
    return {"x0": x0, "noise": noise, "timestep": timestep,
            "text": rng.standard_normal((8, 5, CONFIG.text_dim)).astype(np.float32)}


def _table(model, head):
    return (*dit_rows(model.config), *(head.rows if head else ()))


def _loss_and_gradients(model, params, batch, head=None):
    """Loss and gradients as numpy; params placed where the mesh wants them, the gradients too."""

    def loss(params, batch):
        sigma = batch["timestep"][:, None, None, None, None] / 1000
        noisy = (1 - sigma) * batch["x0"] + sigma * batch["noise"]
        inputs, extra = (noisy, batch["timestep"], batch["text"]), 0.0
        if head is None:
            velocity = model.apply({"params": params}, *inputs)
        else:
            velocity, states = model.apply_with_taps({"params": params}, *inputs, taps=head.taps)
            extra = jnp.mean(jnp.square(head.apply(params[KEY], states, noisy.shape[1:4])))
        return jnp.mean(jnp.square(velocity - (batch["noise"] - batch["x0"]))) + extra

    placed = None
    if model.mesh is not None:
        table = _table(model, head)
        placed = partition.shardings(model.mesh, rows.logical_axes(table), rows.shapes(table, jnp.float32))
        params = jax.device_put(params, placed)
        batch = jax.device_put(batch, partition.batch_sharding(model.mesh))
    step = jax.jit(jax.value_and_grad(loss), out_shardings=None if placed is None else (None, placed),
                   compiler_options=dit_case.QUICK_COMPILE)
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


@pytest.mark.parametrize("name", MESHES)
def test_loss_and_every_gradient_agree_with_one_device(name, params, alone):
    sizes, remat = MESHES[name]
    model = WanDiT(dataclasses.replace(CONFIG, remat=remat), partition.make_mesh(sizes))
    _assert_same(_loss_and_gradients(model, params, _batch()), alone)


def test_a_shadow_head_reads_the_same_states_on_every_mesh(params):
    rng, results = np.random.default_rng(6), []
    for mesh in (None, partition.make_mesh({"fsdp": 2, "seq": 2, "tensor": 2})):
        head = ShadowHead(HEAD, WanDiT(dataclasses.replace(CONFIG, remat="full"), mesh))
        if not results:
            own = rows.tree(head.rows, lambda row: 0.3 * rng.standard_normal(row.full_shape).astype(np.float32))
        results.append(_loss_and_gradients(head.model, {**params, **own}, _batch(), head))
    _assert_same(results[1], results[0], head)


def test_per_token_timesteps_are_sharded_with_their_tokens(params):
    batch, timestep = _batch(), np.random.default_rng(4).uniform(0, 1000, (8, 8)).astype(np.float32)
    velocities = []
    for mesh in (None, partition.make_mesh({"fsdp": 2, "seq": 2, "tensor": 2})):
        apply = jax.jit(WanDiT(CONFIG, mesh).apply, compiler_options=dit_case.QUICK_COMPILE)
        out = jax.block_until_ready(apply({"params": params}, batch["x0"], timestep, batch["text"]))
        velocities.append(np.asarray(out))
    np.testing.assert_allclose(velocities[1], velocities[0], atol=1e-5)


def test_what_does_not_divide_over_the_mesh_is_refused(params):
    mesh = partition.make_mesh({"fsdp": 4, "seq": 2})
    with pytest.raises(ValueError, match="3 heads do not divide over the mesh axis seq of size 2"):
        WanDiT(dataclasses.replace(CONFIG, heads=3), mesh)
    model, text = WanDiT(CONFIG, mesh), np.zeros((4, 5, 20), np.float32)
    with pytest.raises(ValueError, match="3 clips do not divide over the 4 devices of mesh axes data and fsdp"):
        model.apply({"params": params}, np.zeros((3, 2, 4, 4, 4), np.float32), np.zeros(3), text[:3])
    with pytest.raises(ValueError, match="9 tokens do not divide over the mesh axis seq of size 2"):
        model.apply({"params": params}, np.zeros((4, 1, 6, 6, 4), np.float32), np.zeros(4), text)
