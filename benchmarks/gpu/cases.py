"""What is timed on a GPU: programs of the A14B family as the launchers run them, from shapes, and random arguments.

Nothing is read and nothing is allocated before :meth:`Case.make` is called.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from wanjax import codec_work, config, flops, partition, programs
from wanjax.models.dit_config import DiTConfig
from wanjax.models.dit_layers import Block
from wanjax.models.rows import shapes
from wanjax.models.rows.vae import vae_rows
from wanjax.models.vae import WanVAE
from wanjax.models.vae_config import VAEConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = ("block", "train", "lora", "decode")
FRAMES, TEXT = 81, 512  # T of a clip, L of its prompt
SIZES = {32760: (480, 832), 75600: (720, 1280)}  # N of a clip of FRAMES frames: H, W in pixels
TINY = {12: (32, 32), 80: (64, 64)}
TINY_FRAMES = {12: 9, 80: 17}
SMALL = {"model.width": 32, "model.heads": 2, "model.ffn": 64, "model.text_dim": 16, "text.length": 8}
SMALL_CODEC = VAEConfig(base_dim=4, dim_mult=(1, 1, 1, 1), num_res_blocks=1)
_SMALL, _LARGE = 2**20, 2**28  # elements: up to the one drawn on the host, above the other one layer for all


@dataclasses.dataclass(frozen=True)
class Case:
    """One program.

    Attributes:
        name: one of :data:`NAMES`.
        what: it does, in words.
        lowered: ready to be compiled.
        devices: that it is compiled for, in the program's order.
        arguments: its large ones, shapes with shardings.
        flops: of the model's own work in a call, over all devices.
        make: its arguments, random, on the devices.
        following: result and arguments of a call -> arguments of the next one.
    """

    name: str
    what: str
    lowered: jax.stages.Lowered
    devices: Sequence[jax.Device]
    arguments: Any
    flops: int
    make: Callable[[], tuple[Any, ...]]
    following: Callable[[Any, tuple[Any, ...]], tuple[Any, ...]] = lambda result, arguments: arguments


def case(
    name: str, tokens: int, *, layers: int, changes: Mapping[str, Any], tiny: bool, devices: Sequence[jax.Device]
) -> Case:
    """A case of :data:`NAMES`.

    Args:
        name: which.
        tokens: N of a clip, a key of :data:`SIZES`, or with ``tiny`` of :data:`TINY`.
        layers: blocks of the network that is trained; a block and the codec have none.
        changes: fields of the config, by dotted name; for training.
        tiny: sizes for a CPU, on which this code is tested.
        devices: that it runs on: of a block and the codec the first. Some that are not there can be compiled for.
    """
    known = TINY if tiny else SIZES
    if tokens not in known:
        raise ValueError(f"--tokens {tokens}: expected one of {', '.join(map(str, known))}")
    if changes and name in ("block", "decode"):
        raise ValueError(f"--set is of a config, which the case {name} has none of")
    size = (TINY_FRAMES[tokens] if tiny else FRAMES, *known[tokens])
    if name == "block":
        return _block(tokens, tiny, devices[:1])
    if name == "decode":
        return _decode(size, tiny, devices[:1])
    return _training(name, size, layers, changes, tiny, devices)


def _block(tokens: int, tiny: bool, devices: Sequence[jax.Device]) -> Case:
    sizes = {"width": 32, "heads": 2, "ffn": 64} if tiny else {"width": 5120, "heads": 40, "ffn": 13824}
    model = DiTConfig(**sizes, layers=1, dtype="bfloat16", param_dtype="bfloat16")
    block, text = Block(model, mesh=partition.make_mesh({}, devices)), 8 if tiny else TEXT
    angles = (jax.ShapeDtypeStruct((tokens, model.head_dim // 2), jnp.float32),) * 2
    inputs = (jax.ShapeDtypeStruct((1, tokens, model.width), jnp.float32),
              jax.ShapeDtypeStruct((1, text, model.width), jnp.bfloat16),
              jax.ShapeDtypeStruct((1, 1, 6, model.width), jnp.float32), angles)  # fmt: skip
    plain = Block(dataclasses.replace(model, attention="plain"))  # a few tokens, for the shapes alone
    few = (inputs[0].update(shape=(1, 2, model.width)), *inputs[1:3],
           tuple(table.update(shape=(2, model.head_dim // 2)) for table in angles))  # fmt: skip
    params = jax.eval_shape(plain.init, jax.random.key(0), *few)
    params, inputs = (partition.placed_shapes(tree, SingleDeviceSharding(*devices)) for tree in (params, inputs))
    lowered = jax.jit(block.apply).lower(params, *inputs)
    return Case("block", f"forward of one block, {tokens:,} tokens", lowered, devices, (params, inputs),
                flops.forward(model, tokens, text), lambda: (_fill(params), *_fill(inputs)))  # fmt: skip


def _training(
    name: str, size: tuple[int, int, int], layers: int, changes: Mapping[str, Any], tiny: bool,
    devices: Sequence[jax.Device],
) -> Case:  # fmt: skip
    frames, height, width = size
    count = len(devices)
    overrides = {"data.frames": frames, "data.height": height, "data.width": width, "data.batch": count,
                 "train.accumulate": 1, "model.layers": layers, **(SMALL if tiny else {}), **changes}  # fmt: skip
    if name == "lora":
        overrides = {"lora.rank": 4, **overrides} if tiny else overrides
    file = CONFIGS / {"train": "t2v_a14b.py", "lora": "t2v_a14b_lora.py"}[name]
    experiment, mesh = programs.lay_out(config.load(file, overrides), devices)
    program = programs.train(experiment, mesh)
    lowered = program.lower()
    _, batch, *_ = lowered.args_info[0]
    state, base = program.arguments if program.frozen else (program.arguments, None)
    batch = partition.placed_shapes(batch, partition.batch_sharding(mesh))

    def make() -> tuple[Any, ...]:
        moments = jax.tree.map(_zeros, state.opt_state)
        first = dataclasses.replace(_fill(dataclasses.replace(state, opt_state=None)), opt_state=moments)
        beside = () if base is None else (_fill(base),)
        return (first, _fill(batch), jax.random.key(0), None, *beside)

    what = "optimizer step of " + (f"factors of rank {experiment.lora.rank}" if base else "all weights")
    what += f", {layers} blocks, {count} clips of {math.prod(_grid(experiment)):,} tokens"
    what += f", remat {experiment.model.remat}"
    return Case(name, what, lowered, list(mesh.devices.flat), program.arguments, program.flops, make,
                lambda result, arguments: (result[0], *arguments[1:]))  # fmt: skip


def _grid(experiment: config.Experiment) -> tuple[int, ...]:
    data, (time, down, across) = experiment.data, experiment.codec_strides
    return experiment.model.grid((1 + (data.frames - 1) // time, data.height // down, data.width // across))


def _decode(size: tuple[int, int, int], tiny: bool, devices: Sequence[jax.Device]) -> Case:
    frames, height, width = size
    vae = WanVAE(SMALL_CODEC if tiny else VAEConfig())
    grid = (1 + (frames - 1) // 4, height // 8, width // 8)
    place = SingleDeviceSharding(*devices)
    latents = partition.placed_shapes(jax.ShapeDtypeStruct((1, *grid, vae.config.z_dim), jnp.float32), place)
    params = partition.placed_shapes(shapes(vae_rows(vae.config), "float32"), place)
    run = jax.jit(lambda params, latents: vae.apply({"params": params}, latents, method="decode_chunked"))
    return Case("decode", f"codec, latents to {frames} frames of {width} × {height}, float32",
                run.lower(params, latents), devices, (params, latents),
                codec_work.clip_flops(vae.config, "decode", *grid),
                lambda: (_fill(params), _fill(latents)))  # fmt: skip


def _fill(tree: Any) -> Any:
    """Random numbers where they will be used: what is all alike multiplies with less power, and so faster."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [_random(leaf, number) for number, leaf in enumerate(leaves)])


def _random(leaf: jax.ShapeDtypeStruct, number: int) -> jax.Array:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return _zeros(leaf)
    size = math.prod(leaf.shape)
    if size <= _SMALL:
        values = np.random.default_rng(number).standard_normal(leaf.shape, np.float32)
        return jax.device_put((0.02 * values).astype(leaf.dtype), leaf.sharding)

    @functools.partial(jax.jit, out_shardings=leaf.sharding)
    def draw() -> jax.Array:
        # of a stack one layer is drawn: setting up must not take more memory than what is measured
        drawn = leaf.shape[1:] if size > _LARGE else leaf.shape
        return jnp.broadcast_to(0.02 * jax.random.normal(jax.random.key(number), drawn, leaf.dtype), leaf.shape)

    return draw()


def _zeros(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if math.prod(leaf.shape) <= _SMALL:
        return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
    return jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
