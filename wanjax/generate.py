"""Prompts to video: text embeddings, images and noise, denoising by the experts, decoding into frames."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from wanjax import conditions, partition, text
from wanjax.conditions import Condition
from wanjax.denoise import Batch, Execution, Step, denoise, stages_of
from wanjax.experts import Expert
from wanjax.images import prepare_image
from wanjax.models.vae import WanVAE
from wanjax.prompt_embeddings import PromptEmbedder
from wanjax.sample_config import SampleConfig

SEEDS = 2**32


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """Everything between a prompt and a clip.

    Attributes:
        experts: {"high": Expert, "low": ...}; one may be absent where no step needs it.
        vae, vae_params: the codec; its parameters may lie in the host's memory until they are used.
        vae_fingerprint: tells the codec's weights from others.
        text: makes embeddings; its length is L.
        config: the settings that the checkpoint came with.
        frames, height, width, fps: of the clips, T, H, W in pixels and frames per second.
        kind: "t2v", "i2v" or "ti2v": whether clips start from images, see `wanjax.conditions`.
        description: one line that says what was found, for people.
    """

    experts: Mapping[str, Expert]
    vae: WanVAE
    vae_params: Any
    vae_fingerprint: str
    text: PromptEmbedder
    config: SampleConfig
    frames: int
    height: int
    width: int
    fps: float
    kind: str = "t2v"
    description: str = ""

    @property
    def steps_of_size(self) -> tuple[int, int]:
        """Height and width of a clip are multiples of these numbers of pixels."""
        _, down_h, down_w = self.vae.strides
        patches = [expert.model.config.patch for expert in self.experts.values()]
        return down_h * math.lcm(*(p[1] for p in patches)), down_w * math.lcm(*(p[2] for p in patches))

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
        for name, size, stride, step in zip(("height", "width"), (self.height, self.width), (down_h, down_w),
                                            self.steps_of_size, strict=True):  # fmt: skip
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
        """16 hex digits that tell one set of weights from another, without reading all of them."""
        parts = [f"{name} {expert.fingerprint}" for name, expert in sorted(self.experts.items())]
        parts += [f"vae {self.vae_fingerprint}", f"text {self.text.fingerprint}"]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One clip to be made.

    Attributes:
        prompt: text.
        seed: of its noise, 0 ≤ seed < 2³².
        image, last_image: uint8 [H0, W0, 3] that the clip starts from and ends with, of any size; None for none.
    """

    prompt: str
    seed: int
    image: np.ndarray | None = None
    last_image: np.ndarray | None = None


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


def check(pipeline: Pipeline, requests: Sequence[Request], config: SampleConfig, execution: Execution) -> None:
    """Refuses what cannot work, before anything is read or computed.

    Raises:
        ValueError: an expert that has steps to take is missing, sizes that the networks cannot take, images that the
            checkpoint does not take or that it lacks, a batch that does not divide over the devices.
    """
    for stage in stages_of({name: expert.model for name, expert in pipeline.experts.items()}, config):
        mesh = stage.model.mesh
        ways = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in partition.BATCH)
        if execution.batch % ways:
            raise ValueError(f"batch = {execution.batch}: clips are divided over the mesh axes data and fsdp, {ways} "
                             f"ways; make it a multiple of {ways}, or put the devices on seq or tensor")  # fmt: skip
    shape = pipeline.latent_shape
    for request in requests:
        noise_for(request.seed, ())
        conditions.check_images(pipeline.kind, first=request.image is not None, last=request.last_image is not None)
        if request.last_image is not None and shape[0] < 2:
            raise ValueError(f"frames = {pipeline.frames}: a first and a last image need at least two latent frames")


def latents(
    pipeline: Pipeline,
    requests: Sequence[Request],
    *,
    config: SampleConfig | None = None,
    execution: Execution | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    on_read: Callable[[str], None] = lambda name: None,
    on_ready: Callable[[], None] = lambda: None,
) -> Iterator[np.ndarray]:
    """Latents of each clip in the order of the requests, float32 [F, h, w, C] on the host.

    A clip depends on its own request, the settings and the weights, not on the clips beside it; the last batch is
    filled up with copies, so that one program serves all. Embeddings and images are made first, then the experts are
    read as their steps come.

    Args:
        requests: what to make.
        config: settings, the pipeline's own by default.
        execution: how the work is laid out.
        on_step, on_read: see `wanjax.denoise.denoise`.
        on_ready: called once embeddings and images are made, which a process does by itself, before the devices of
            several work together: these give up on a process that is late by half a minute.
    Raises: ValueError on what cannot work, as `check`; FloatingPointError where latents are not finite.
    """
    config, execution = config or pipeline.config, execution or Execution()
    check(pipeline, requests, config, execution)
    embeddings = pipeline.text.embed([*(request.prompt for request in requests), config.negative_prompt])
    length, null = pipeline.text.length, embeddings.pop()
    given = _conditions(pipeline, requests)
    groups = _groups(given, execution.batch)
    batches = []
    for group in groups:
        filled = group + group[-1:] * (execution.batch - len(group))
        batches.append(
            Batch(
                np.stack([noise_for(requests[i].seed, pipeline.latent_shape) for i in filled]),
                text.pad([embeddings[i] for i in filled], length),
                text.pad([null], length),
                jax.tree.map(lambda *leaves: np.concatenate(leaves), *(given[i] for i in filled)),
            )
        )
    on_ready()
    made = denoise(pipeline.experts, batches, config, execution=execution, on_step=on_step, on_read=on_read)
    for group, batch in zip(groups, made, strict=True):
        for i, row in zip(group, batch, strict=False):
            if not np.isfinite(row).all():
                raise FloatingPointError(
                    f"the latents of prompt {requests[i].prompt!r}, seed {requests[i].seed} are not finite: the "
                    "weights are damaged, or their type is too narrow for this network"
                )
            yield row


def _groups(given: Sequence[Condition], size: int) -> list[list[int]]:
    """Numbers of consecutive requests that make a batch: at most ``size``, and all with images or all without."""
    groups: list[list[int]] = []
    for i, condition in enumerate(given):
        if groups and len(groups[-1]) < size and type(given[groups[-1][0]]) is type(condition):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _conditions(pipeline: Pipeline, requests: Sequence[Request]) -> list[Condition]:
    """The condition of each request, on the host."""
    size = pipeline.height, pipeline.width
    if all(request.image is None for request in requests):
        return [Condition()] * len(requests)
    vae = _of_process(pipeline.vae)
    params = _on_devices(vae, pipeline.vae_params)
    made = []
    for request in requests:
        first, last = (None if image is None else prepare_image(image, *size)
                       for image in (request.image, request.last_image))  # fmt: skip
        condition = conditions.condition_on(pipeline.kind, vae, params, first, last, frames=pipeline.frames)
        made.append(jax.device_get(condition))
    return made


def to_uint8(video: Any) -> np.ndarray:
    """Pixels 0..255 of video in [−1, 1]; the only place where values are clipped. Any shape."""
    return np.rint(np.clip((np.asarray(video, np.float32) + 1.0) * 127.5, 0.0, 255.0)).astype(np.uint8)


def frames(vae: WanVAE, params: Any, latents: Any) -> Iterator[np.ndarray]:
    """The frames of one clip as they are decoded, uint8 [H, W, 3]; memory does not grow with their number.

    Where the codec's devices are those of several processes, each gets all frames, and all have to take all.

    Args:
        vae, params: the codec.
        latents: [F, h, w, C].
    """
    for chunk in vae.stream({"params": _on_devices(vae, params)}, latents[None]):
        yield from to_uint8(partition.to_host(chunk)[0])


def _on_devices(vae: WanVAE, params: Any) -> Any:
    return jax.device_put(params) if vae.mesh is None else partition.put(params, partition.replicated(vae.mesh))


def _of_process(vae: WanVAE) -> WanVAE:
    """The codec on this process's own devices: images are made for the experts on every process, like embeddings."""
    if vae.mesh is None or not vae.mesh.is_multi_process:
        return vae
    return WanVAE(vae.config, partition.make_mesh({"seq": -1}, list(vae.mesh.local_devices)))


def generate(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    config: SampleConfig | None = None,
    batch: int = 1,
) -> Iterator[np.ndarray]:
    """Whole clips from text, in the order of the prompts, as each is decoded; see `latents`.

    Args:
        prompts, seeds: one seed per prompt.
        config: settings, the pipeline's own by default.
        batch: clips that are denoised together.
    Yields: [T, H, W, 3] uint8.
    Raises: as `latents`.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: expected one seed per prompt")
    requests = [Request(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
    for one in latents(pipeline, requests, config=config, execution=Execution(batch=batch)):
        yield np.stack(list(frames(pipeline.vae, pipeline.vae_params, one)))
