"""Prompts to video: text embeddings and noise, two-expert denoising with guidance, decoding.

The denoising of a batch is one compiled program: a loop of the high-noise expert and a loop of the low-noise
expert, split at the step where the timestep falls below the boundary, which the host knows beforehand.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wanjax import rectified_flow, solvers
from wanjax import text as text_lib
from wanjax.models.dit import WanDiT
from wanjax.models.vae import WanVAE

Expert = tuple[WanDiT, Any]  # the network and its parameters

SEEDS = 2**32


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How a clip is sampled. The defaults are those of Wan2.2-T2V-A14B.

    Attributes:
        solver: "unipc", "dpm++" or "euler", see `wanjax.solvers`.
        grid: the solver's noise levels: "official", "diffusers", or "distilled" for weights distilled to a few steps,
            which go with 4 steps, shift 5, no guidance and Euler.
        steps: S, calls of the network (each on twice the clips where guidance is on).
        shift: of the noise levels, > 0.
        guidance_high, guidance_low: scale g of classifier-free guidance while the high-noise or the low-noise
            expert is at work: v = v(negative) + g (v(prompt) − v(negative)). At 1 the negative prompt is not run.
        boundary: timesteps ≥ 1000 · boundary belong to the high-noise expert. 0 gives it all of them.
        negative_prompt: what guidance leads away from.
    """

    solver: str = "unipc"
    grid: str = "official"
    steps: int = 40
    shift: float = 12.0
    guidance_high: float = 4.0
    guidance_low: float = 3.0
    boundary: float = 0.875
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        solvers.make(self.solver, steps=self.steps, shift=self.shift, grid=self.grid)
        for name in ("guidance_high", "guidance_low"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} = {getattr(self, name)}: expected a finite number; 1 is no guidance")
        if not 0.0 <= self.boundary <= 1.0:
            raise ValueError(
                f"boundary = {self.boundary}: expected a noise level in [0, 1], 0.875 for Wan2.2-T2V-A14B"
            )

    @property
    def expert_steps(self) -> dict[str, int]:
        """How many of the steps each expert takes; they sum to `steps`."""
        timesteps = solvers.make(self.solver, steps=self.steps, shift=self.shift, grid=self.grid).timesteps
        high = int(np.sum(timesteps >= rectified_flow.TIMESTEPS * self.boundary))
        return {"high": high, "low": self.steps - high}

    def guidance(self, expert: str) -> float:
        """The scale while `expert` ("high" or "low") is at work."""
        return {"high": self.guidance_high, "low": self.guidance_low}[expert]


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """Everything between a prompt and a clip.

    Attributes:
        experts: {"high": (WanDiT, params), "low": ...}; one may be absent where no step needs it.
        vae, vae_params: the codec.
        text: the text encoder with its tokenizer; its length is L.
        config: the settings that the checkpoint came with.
        frames, height, width, fps: of the clips, T, H, W in pixels and frames per second.
        description: one line that says what was found, for people.
    """

    experts: Mapping[str, Expert]
    vae: WanVAE
    vae_params: Any
    text: text_lib.TextEncoder
    config: SampleConfig
    frames: int
    height: int
    width: int
    fps: float
    description: str = ""

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(F, h, w, C) of one clip.

        Raises:
            ValueError: a size that the codec or the experts' patches cannot take, naming the nearest that they can.
        """
        time, down_h, down_w = self.vae.strides
        if self.frames < 1 or (self.frames - 1) % time:
            near = max(self.frames - 1, 0) // time * time + 1
            raise ValueError(f"frames = {self.frames}: the codec takes {time}n + 1 frames; use {near} or {near + time}")
        patches = [model.config.patch for model, _ in self.experts.values()]
        for name, size, stride, axis in (("height", self.height, down_h, 1), ("width", self.width, down_w, 2)):
            step = stride * math.lcm(*(patch[axis] for patch in patches))
            if size < step or size % step:
                near = max(size // step * step, step)
                raise ValueError(
                    f"{name} = {size}: the codec's stride {stride} and the experts' patches take multiples of {step}; "
                    f"use {near} or {near + step}"
                )
        latent_frames = 1 + (self.frames - 1) // time
        return latent_frames, self.height // down_h, self.width // down_w, self.vae.config.z_dim

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits that tell one set of weights from another, without reading all of them: the first 64 values
        of every row of layers of every tensor of experts, codec and text encoder."""
        digest = hashlib.sha256(self.text.tokenizer.name.encode())
        trees = {name: params for name, (_, params) in self.experts.items()}
        trees |= {"vae": self.vae_params, "text": self.text.params}
        for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
            part = leaf[(slice(None),) + (0,) * (leaf.ndim - 2) + (slice(64),)] if leaf.ndim > 1 else leaf
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()[:16]


def noise_for(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 noise of one clip, from its own seed alone.

    Args:
        seed: 0 ≤ seed < 2³².
        shape: (F, h, w, C).
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < SEEDS:
        raise ValueError(f"seed {seed!r}: expected a whole number from 0 to {SEEDS - 1}")
    # numpy promises the same bits from this generator in every later version, on every machine
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def check_experts(experts: Mapping[str, Expert | None], config: SampleConfig, channels: int) -> None:
    """Refuses experts that cannot take the steps that fall to them.

    Raises:
        ValueError: an expert that has steps to take is missing, or does not read and predict `channels` channels.
    """
    for name, count in config.expert_steps.items():
        expert = experts.get(name)
        if not count:
            continue
        if expert is None:
            raise ValueError(
                f"the {name}-noise expert is missing: {count} of the {config.steps} steps are its own "
                f"(boundary {config.boundary}, shift {config.shift}). Train it, or give a checkpoint that holds it"
            )
        shape = expert[0].config
        if (shape.in_channels, shape.out_channels) != (channels, channels):
            raise ValueError(
                f"the {name}-noise expert takes {shape.in_channels} channels and gives {shape.out_channels}, the "
                f"codec's latents have {channels}: only text-to-video experts can be sampled from a prompt"
            )


def denoise(
    high: Expert | None,
    low: Expert | None,
    noise: Any,
    text: Any,
    null_text: Any,
    config: SampleConfig,
) -> jax.Array:
    """Latents from noise, compiled once per (networks, shapes, config).

    Args:
        high, low: the experts; None where no step falls to one.
        noise: [B, F, h, w, C].
        text: [B, L, E] padded embeddings of the prompts.
        null_text: [B, L, E] or [1, L, E] of the negative prompt; None where both scales are 1.
        config: see `SampleConfig`.
    Returns: [B, F, h, w, C] float32.
    Raises: ValueError as `check_experts`, or where null_text is needed and absent.
    """
    experts = {"high": high, "low": low}
    check_experts(experts, config, noise.shape[-1])
    stages, params, first = [], [], 0
    for name, count in config.expert_steps.items():
        expert = experts[name]
        if count and expert is not None:
            stages.append((expert[0], config.guidance(name), first, first + count))
            params.append(expert[1])
        first += count
    if any(guidance != 1.0 for _, guidance, _, _ in stages):
        if null_text is None:
            raise ValueError("guidance needs the embedding of the negative prompt, null_text is None")
        null_text = np.broadcast_to(null_text, text.shape) if isinstance(null_text, np.ndarray) else null_text
    else:
        null_text = None
    return _denoise(tuple(stages), config, tuple(params), noise, text, null_text)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _denoise(
    stages: tuple[tuple[WanDiT, float, int, int], ...],
    config: SampleConfig,
    params: tuple[Any, ...],
    noise: jax.Array,
    text: jax.Array,
    null_text: jax.Array | None,
) -> jax.Array:
    solver = solvers.make(config.solver, steps=config.steps, shift=config.shift, grid=config.grid)
    timesteps = jnp.asarray(solver.timesteps, jnp.float32)
    x = jnp.asarray(noise, jnp.float32)
    if null_text is not None:
        both = jnp.concatenate([text, jnp.broadcast_to(null_text, text.shape)])
    carry = (x, solver.init(x))
    for (model, guidance, first, last), weights in zip(stages, params, strict=True):

        def velocity(
            x: jax.Array, t: jax.Array, model: WanDiT = model, g: float = guidance, weights: Any = weights
        ) -> jax.Array:
            if g == 1.0:
                return model.apply({"params": weights}, x, jnp.full(len(x), t), text)
            twice = jnp.concatenate([x, x])
            v, v_null = jnp.split(model.apply({"params": weights}, twice, jnp.full(len(twice), t), both), 2)
            return v_null + g * (v - v_null)

        def body(i: jax.Array, carry: Any, velocity: Callable[..., jax.Array] = velocity) -> Any:
            x, state = carry
            return solver.step(state, x, velocity(x, timesteps[i]), i)

        carry = jax.lax.fori_loop(first, last, body, carry)
    return carry[0]


def to_uint8(video: Any) -> np.ndarray:
    """Pixels 0..255 of video in [−1, 1]; the only place where values are clipped. Any shape."""
    return np.rint(np.clip((np.asarray(video, np.float32) + 1.0) * 127.5, 0.0, 255.0)).astype(np.uint8)


def generate(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    config: SampleConfig | None = None,
    batch: int = 1,
) -> Iterator[np.ndarray]:
    """Clips in the order of the prompts, as each is decoded.

    A clip depends on its own prompt and seed, the settings and the weights, not on the clips beside it; the last
    batch is filled up with copies, so that one program serves all.

    Args:
        prompts, seeds: one seed per prompt.
        config: settings, the pipeline's own by default.
        batch: clips that are denoised together; more is faster and takes more memory.
    Yields: [T, H, W, 3] uint8.
    Raises: ValueError on what cannot work, before any network but the text encoder has run; FloatingPointError
        where latents are not finite.
    """
    config = config or pipeline.config
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: expected one seed per prompt")
    if batch < 1:
        raise ValueError(f"batch = {batch}: expected at least 1 clip")
    shape = pipeline.latent_shape
    check_experts(pipeline.experts, config, shape[-1])
    embeddings = pipeline.text.embed([*prompts, config.negative_prompt])
    length, null = pipeline.text.length, embeddings.pop()
    for first in range(0, len(prompts), batch):
        members = list(range(first, min(first + batch, len(prompts))))
        filled = members + members[-1:] * (batch - len(members))
        latents = denoise(
            pipeline.experts.get("high"),
            pipeline.experts.get("low"),
            np.stack([noise_for(seeds[i], shape) for i in filled]),
            text_lib.pad([embeddings[i] for i in filled], length),
            text_lib.pad([null], length),
            config,
        )
        host = np.asarray(latents)
        for row, i in enumerate(members):
            if not np.isfinite(host[row]).all():
                raise FloatingPointError(
                    f"the latents of prompt {prompts[i]!r}, seed {seeds[i]} are not finite: the weights are damaged, "
                    "or their type is too narrow for this network"
                )
            yield to_uint8(decode(pipeline.vae, pipeline.vae_params, host[row : row + 1])[0])


def decode(vae: WanVAE, params: Any, latents: Any) -> jax.Array:
    """[B, F, h, w, C] to video [B, T, H, W, 3], not clipped, a few frames at a time: memory does not grow with T."""
    return vae.apply({"params": params}, latents, method="decode_chunked")
