"""Wan's causal video codecs: frames <-> latents, 4 times shorter.

Wan2.1's latents are 8 times smaller and have 16 channels, Wan2.2's (of TI2V-5B) are 16 times smaller and have 48.
Source: the architecture of "Wan: Open and Advanced Large-Scale Video Generative Models" (arXiv:2503.20314), section
4.1, and of Wan2.2's ``wan/modules/vae2_2.py``, both as stored in the diffusers layout (``AutoencoderKLWan``).
docs/codec.md says what is exact, which precision is safe and what memory it takes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from wanjax import partition, precision
from wanjax.models.rows import Row, shapes, tree
from wanjax.models.rows.vae import vae_rows
from wanjax.models.vae_config import WAN22, VAEConfig, decoder_plan, encoder_plan, stages
from wanjax.models.vae_layers import Memory, Params, causal_conv, head, middle, patchify, run_stage, unpatchify
from wanjax.models.vae_split import RowSplit, kept_placement, over_parts, placement

__all__ = ["WAN22", "VAEConfig", "WanVAE"]
_Kept = Sequence[jax.Array]
METHODS = ("encode", "decode", "encode_chunked", "decode_chunked", "moments")
STREAMS = {"encode": 4, "decode": 1}  # frames, or latent frames, of every chunk but the first, which has one


@dataclass(frozen=True)
class WanVAE:
    """A codec as pure functions of its parameters.

    Shapes: video ``[B, T, H, W, 3]`` in [-1, 1] with T = 4n + 1 and H, W multiples of s = 8 (Wan2.1) or 16 (Wan2.2);
    latents ``[B, F, h, w, C]`` with F = 1 + (T - 1) / 4, h = H / s, w = W / s. Causal: no output depends on later
    frames.

    Attributes:
        config: sizes and types.
        mesh: None for one device. With a mesh, clips are split over ``data`` and ``fsdp``, the rows of every frame
            over ``seq`` and ``tensor`` (any number of rows); the result is that of one device.
    """

    config: VAEConfig
    mesh: Mesh | None = None

    @property
    def strides(self) -> tuple[int, int, int]:
        """Frames, rows and columns of pixels per latent: (4, s, s)."""
        return self.config.strides

    def init(self, rng: jax.Array) -> dict[str, Any]:
        """Random parameters ``{"params": tree}``: kernels of variance 1/fan_in, no bias, attention switched off."""
        rows = vae_rows(self.config)
        dtype = jnp.dtype(self.config.param_dtype)
        # One draw cut into pieces: a draw per tensor takes a minute to compile on CPU.
        kernels = [row for row in rows if row.path[-1] == "kernel" and "proj" not in row.path]
        sizes = [math.prod(row.shape) for row in kernels]
        noise = jax.random.normal(rng, (sum(sizes),))
        cuts = dict(zip((row.path for row in kernels), itertools.accumulate(sizes, initial=0), strict=False))

        def leaf(row: Row) -> jax.Array:
            if row.path in cuts:
                piece = noise[cuts[row.path] : cuts[row.path] + math.prod(row.shape)].reshape(row.shape)
                return (piece * math.prod(row.shape[:-1]) ** -0.5).astype(dtype)
            return (jnp.ones if "norm" in row.path[-1] else jnp.zeros)(row.shape, dtype)

        return {"params": tree(rows, leaf)}

    def apply(self, variables: Mapping[str, Any], x: Any, *, method: str = "encode") -> Any:
        """Run one of the codec's methods on numpy or jax arrays, inside or outside jit.

        Args:
            variables: ``{"params": tree}``.
            x: video for "encode", "encode_chunked" and "moments"; normalised latents for "decode", "decode_chunked".
            method: "encode" -> normalised mean of the latents ``[B, F, h, w, C]``;
                "decode" -> video ``[B, T, H, W, 3]``, not clipped;
                "encode_chunked", "decode_chunked" -> the same numbers, working on 1 and then 4 frames (1 latent
                frame) at a time, so that only input and result grow with T (see :meth:`stream`);
                "moments" -> (mean, log-variance) of the latents before normalisation.

        Returns:
            float32 array(s).

        Raises:
            ValueError: unknown method, integers, or a shape that the codec or the mesh cannot take.
        """
        if method not in METHODS:
            raise ValueError(f"WanVAE has no method {method!r}; expected one of {METHODS}")
        self._check(x.shape, x.dtype, method)
        return _run(self, method, variables["params"], jnp.asarray(x))

    def stream(self, variables: Mapping[str, Any], x: Any, *, method: str = "decode") -> Iterator[jax.Array]:
        """Encode or decode chunk by chunk: neither the whole input nor the whole result need be anywhere.

        Two programs are compiled, for the first chunk and for the later ones. While one chunk is used, the next is
        computed.

        Args:
            variables: ``{"params": tree}``.
            x: what :meth:`apply` takes, or an iterable of its frames ``[B, h, w, C]`` or ``[B, H, W, 3]``. An array
                may lie on the host: a chunk at a time goes to the devices.
            method: "decode" or "encode".

        Yields:
            "decode": video float32 ``[B, 1, H, W, 3]``, then ``[B, 4, H, W, 3]`` for every further latent frame;
            "encode": normalised latents float32 ``[B, 1, h, w, C]``.

        Raises:
            ValueError: unknown method, integers, or a shape that the codec or the mesh cannot take: at once for an
                array, at the frame where it shows for an iterable.
        """
        if method not in STREAMS:
            raise ValueError(f"WanVAE has no stream {method!r}; expected one of {tuple(STREAMS)}")
        if not hasattr(x, "shape"):
            return self._stream(variables["params"], self._grouped(x, method), method)
        self._check(x.shape, x.dtype, method)
        ends = range(1, x.shape[1] + 1, STREAMS[method])
        return self._stream(variables["params"], (x[:, max(end - STREAMS[method], 0) : end] for end in ends), method)

    def lowered(self, x: jax.ShapeDtypeStruct, *, method: str = "decode") -> jax.stages.Lowered:
        """The program of every later chunk of :meth:`stream`, ready to be compiled; nothing is allocated.

        Args:
            x: ``[B, 4, H, W, 3]`` for "encode", ``[B, 1, h, w, C]`` for "decode".
            method: "decode" or "encode".
        """
        first = jax.ShapeDtypeStruct((x.shape[0], 1, *x.shape[2:]), x.dtype)
        self._check(first.shape, x.dtype, method)
        params = shapes(vae_rows(self.config), self._dtype(method))
        _, kept = jax.eval_shape(partial(_piece, self, method), params, first, None)
        if self.mesh is not None:
            params = partition.placed_shapes(params, partition.replicated(self.mesh))
            x = partition.placed_shapes(x, placement(self.mesh, x.shape[2]))
            kept = partition.placed_shapes(kept, kept_placement(self.mesh))
        return _piece.lower(self, method, params, x, kept)

    def _stream(self, params: Params, chunks: Iterable[Any], method: str) -> Iterator[jax.Array]:
        params = _cast(params, self._dtype(method))  # once, not with every chunk
        if self.mesh is not None:
            params = partition.put(params, partition.replicated(self.mesh))
        kept: _Kept | None = None
        ready: jax.Array | None = None
        for chunk in chunks:
            jax.block_until_ready(ready)  # one program at a time
            out, kept = _piece(self, method, params, self._placed(chunk, method), kept)
            if ready is not None:
                yield ready
            ready = out
        if ready is not None:
            yield ready

    def _placed(self, chunk: Any, method: str) -> jax.Array:
        if self.mesh is None:
            return jnp.asarray(chunk)
        return partition.put(chunk, placement(self.mesh, chunk.shape[2]))

    def _grouped(self, frames: Iterable[Any], method: str) -> Iterator[np.ndarray]:
        """Chunks of the frames, checked."""
        count, shape, group = 0, None, []
        for frame in frames:
            frame = np.asarray(frame)
            if shape is None:
                shape = frame.shape
                self._check((*shape[:1], 1, *shape[1:]), frame.dtype, method)
            if frame.shape != shape:
                raise ValueError(f"frame {count} is {frame.shape}, the first is {shape}; give frames of one size")
            group.append(frame)
            if count % STREAMS[method] == 0:
                yield np.stack(group, axis=1)
                group = []
            count += 1
        if group or not count:
            self._check((1, count, *(shape or (1, 1, 1, 1))[1:]), np.dtype(np.float32), method)

    def _dtype(self, method: str) -> jnp.dtype:
        """Compute type of a method."""
        return jnp.dtype(self.config.dtype if method.startswith("decode") else self.config.encoder_dtype)

    def _rows(self, height: int, method: str) -> int:
        """Latent rows h of frames of so many rows of latents, or of pixels."""
        return height if method.startswith("decode") else height // self.strides[1]

    def _check(self, shape: tuple[int, ...], dtype: np.dtype, method: str) -> None:
        self._check_shape(shape, method)
        if not jnp.issubdtype(dtype, jnp.floating):
            wanted = "normalised latents" if method.startswith("decode") else "pixels in [-1, 1]: x / 127.5 - 1"
            raise ValueError(f"the codec was given {dtype}; expected floats, {wanted}")
        ways = 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in partition.BATCH)
        if shape[0] % ways:
            raise ValueError(
                f"{shape[0]} clips do not divide over the {ways} devices of mesh axes data and fsdp; give the codec a "
                "mesh of its own whose axis seq, which splits frames, has all devices"
            )

    def _check_shape(self, shape: tuple[int, ...], method: str) -> None:
        if method.startswith("decode"):
            if len(shape) != 5 or shape[-1] != self.config.z_dim or 0 in shape:
                raise ValueError(f"latents have shape {shape}; expected [B, F, h, w, {self.config.z_dim}]")
            return
        if len(shape) != 5 or shape[-1] != 3 or 0 in shape:
            raise ValueError(f"video has shape {shape}; expected [B, T, H, W, 3]")
        frames, height, width = shape[1:4]
        if frames % 4 != 1:
            raise ValueError(
                f"video has {frames} frames; the codec takes 4n + 1: crop to {max(frames - 1, 0) // 4 * 4 + 1}"
            )
        _, down, across = self.strides
        if height % down or width % across:
            raise ValueError(
                f"video is {height}x{width} pixels; the codec takes multiples of {down}: "
                f"crop to {height // down * down}x{width // across * across}"
            )


@partial(jax.jit, static_argnums=(0, 1))
def _run(model: WanVAE, method: str, params: Params, x: jax.Array) -> Any:
    """The methods of :meth:`WanVAE.apply`."""

    def whole(split: RowSplit | None, params: Params, x: jax.Array, _: tuple[()]) -> tuple[Any, tuple[()]]:
        step = partial(_chunk, model, method, split, params)
        if method.endswith("chunked"):
            return _in_chunks(step, x, STREAMS[method.removesuffix("_chunked")]), ()
        return step(x, None)[0], ()

    params = _cast(params, model._dtype(method))
    return over_parts(model.mesh, model._rows(x.shape[2], method), whole, params, x, ())[0]


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _piece(model: WanVAE, method: str, params: Params, x: jax.Array, kept: _Kept | None) -> tuple[jax.Array, _Kept]:
    """The next chunk of a stream, and what the one after it needs."""

    def chunk(split: RowSplit | None, params: Params, x: jax.Array, kept: _Kept | None) -> tuple[Any, _Kept]:
        return _chunk(model, method, split, params, x, kept)

    return over_parts(model.mesh, model._rows(x.shape[2], method), chunk, params, x, kept)


def _cast(params: Params, dtype: jnp.dtype) -> Params:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


def _chunk(
    model: WanVAE, method: str, split: RowSplit | None, params: Params, x: jax.Array, kept: _Kept | None
) -> tuple[Any, _Kept]:
    """A clip (its first frame first, or a later chunk with what the chunk before kept) in and out of the network.

    x and what comes out are as in :meth:`WanVAE.apply`, of this device's rows.
    """
    config, dtype, memory = model.config, model._dtype(method), Memory(kept, split)
    mean = jnp.asarray(config.latents_mean, jnp.float32)
    std = jnp.asarray(config.latents_std, jnp.float32)
    with precision.within(dtype):
        if method.startswith("decode"):
            z = (x.astype(jnp.float32) * std + mean).astype(dtype)
            return _decode(config, params, z, memory).astype(jnp.float32), tuple(memory.kept)
        moments = _encode(config, params, x.astype(dtype), memory).astype(jnp.float32)
    centre, logvar = jnp.split(moments, 2, axis=-1)
    if method == "moments":
        return (centre, jnp.clip(logvar, -30.0, 20.0)), tuple(memory.kept)
    return (centre - mean) / std, tuple(memory.kept)


def _encode(config: VAEConfig, params: Params, x: jax.Array, memory: Memory) -> jax.Array:
    """Video -> moments of the latents."""
    inner = params["encoder"]
    x = causal_conv(inner["conv_in"], patchify(x, config.patch), memory)
    for stage in stages(encoder_plan(config)):
        x = run_stage(stage, inner, x, memory, shortcut=config.residual)
    x = head(inner, middle(inner, x, memory), memory)
    return causal_conv(params["quant_conv"], x, memory)


def _decode(config: VAEConfig, params: Params, z: jax.Array, memory: Memory) -> jax.Array:
    """Latents as the encoder's mean -> video."""
    inner = params["decoder"]
    x = causal_conv(inner["conv_in"], causal_conv(params["post_quant_conv"], z, memory), memory)
    x = middle(inner, x, memory)
    for stage in stages(decoder_plan(config)):
        # The decoder's last resolution has no shortcut: nothing is doubled there.
        x = run_stage(stage, inner, x, memory, shortcut=config.residual and stage[-1].kind != "residual")
    return unpatchify(head(inner, x, memory), config.patch)


def _in_chunks(
    step: Callable[[jax.Array, _Kept | None], tuple[jax.Array, _Kept]], x: jax.Array, size: int
) -> jax.Array:
    """``step`` on the first frame, then on ``size`` frames at a time, in one compiled loop."""
    first, kept = step(x[:, :1], None)
    rest = x[:, 1:]
    if not rest.shape[1]:
        return first
    chunks = jnp.moveaxis(rest.reshape(rest.shape[0], -1, size, *rest.shape[2:]), 1, 0)

    def body(carry: _Kept, chunk: jax.Array) -> tuple[_Kept, jax.Array]:
        out, carry = step(chunk, carry)
        return carry, out

    _, outs = jax.lax.scan(body, kept, chunks)
    outs = jnp.moveaxis(outs, 0, 1)
    return jnp.concatenate([first, outs.reshape(outs.shape[0], -1, *outs.shape[3:])], axis=1)
