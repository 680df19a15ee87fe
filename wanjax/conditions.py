"""What an image fixes of a clip: how I2V-A14B and TI2V-5B are shown the frames that are given.

I2V-A14B reads, behind the noisy latents, four channels that say which frames are given, and the latents of a clip with
these frames whose others are mid-grey (0 in [-1, 1]). TI2V-5B has the clean latents of the image
in the place of the first latent frame, at timestep 0.

A condition is a pytree, so that one compiled step serves every image. A loop of sampling uses it like this, and is the
same loop for text alone:

    x = condition.start(noise)
    for t in timesteps:
        v = network(condition.network_input(x), condition.timesteps(t, len(x), grid), text)
        x = condition.after_step(solver's step from x along v)

Sources: wan/image2video.py and wan/textimage2video.py of github.com/Wan-Video/Wan2.2; pipeline_wan_i2v.py of
diffusers 0.42, which has the last image of I2V too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wanjax.models.dit_config import DiTConfig
from wanjax.models.vae import WanVAE

__all__ = ["KINDS", "Condition", "FirstLatents", "ImageChannels", "check_images", "condition_on", "first_latents",
           "image_channels", "kind_of", "masked"]  # fmt: skip

KINDS = ("t2v", "i2v", "ti2v")
"""Of checkpoints: from text alone; from text and an image; from text with or without an image."""


@partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=())
@dataclass(frozen=True)
class Condition:
    """Nothing is given: a clip from text alone. The base of the others, which change what they must."""

    @property
    def channels(self) -> int:
        """Channels that the network reads beside those of the noisy latents."""
        return 0

    def start(self, noise: Any) -> jax.Array:
        """The first sample, float32 [B, F, h, w, C], of noise of that shape."""
        return jnp.asarray(noise, jnp.float32)

    def network_input(self, x: jax.Array) -> jax.Array:
        """What the network reads, [B, F, h, w, C + channels], of the sample x [B, F, h, w, C]."""
        return x

    def timesteps(self, t: Any, batch: int, grid: tuple[int, int, int]) -> jax.Array:
        """The network's timesteps, [B] or, per token, [B, N].

        Args:
            t: the solver's timestep, a scalar; or, in training, of every clip, [B].
            batch: B.
            grid: tokens in time, height, width; N is their product.
        """
        return jnp.full((batch,), t, jnp.float32)

    def after_step(self, x: jax.Array) -> jax.Array:
        """The sample that the next step starts from, of the one that the solver gave; both [B, F, h, w, C]."""
        return x


@partial(jax.tree_util.register_dataclass, data_fields=("given",), meta_fields=())
@dataclass(frozen=True)
class ImageChannels(Condition):
    """Given frames as further channels of the network (I2V-A14B).

    Attributes:
        given: [B or 1, F, h, w, 4 + C]: which of a latent frame's frames are given (1 or 0; the clip's first frame,
            which is a latent frame by itself, counts four times), then the latents of the clip with these frames alone.
    """

    given: Any

    @property
    def channels(self) -> int:
        return self.given.shape[-1]

    def network_input(self, x: jax.Array) -> jax.Array:
        given = jnp.broadcast_to(self.given, (len(x), *self.given.shape[1:]))
        return jnp.concatenate([x, given.astype(x.dtype)], axis=-1)


@partial(jax.tree_util.register_dataclass, data_fields=("latents", "clips"), meta_fields=())
@dataclass(frozen=True)
class FirstLatents(Condition):
    """Clean latents in the first latent frames, at timestep 0 (TI2V-5B). One token is one latent frame long.

    Attributes:
        latents: [B or 1, G, h, w, C] of the G given latent frames, normalised.
        clips: bool [B], those that have them; None: all.
    """

    latents: Any
    clips: Any = None

    def start(self, noise: Any) -> jax.Array:
        return self.after_step(jnp.asarray(noise, jnp.float32))

    def timesteps(self, t: Any, batch: int, grid: tuple[int, int, int]) -> jax.Array:
        frames, height, width = grid
        given = (jnp.arange(frames) < self.latents.shape[1])[None]
        if self.clips is not None:
            given = given & self.clips[:, None]
        own = jnp.broadcast_to(jnp.asarray(t, jnp.float32), (batch,))[:, None]
        return jnp.repeat(jnp.where(given, 0.0, own), height * width, axis=1)

    def after_step(self, x: jax.Array) -> jax.Array:
        given = jnp.broadcast_to(self.latents, (len(x), *self.latents.shape[1:])).astype(x.dtype)
        first, rest = jnp.split(x, [given.shape[1]], axis=1)
        if self.clips is not None:
            given = jnp.where(self.clips[:, None, None, None, None], given, first)
        return jnp.concatenate([given, rest], axis=1)


def kind_of(models: Sequence[DiTConfig], vae: WanVAE, *, expand_timesteps: bool | None = None) -> str:
    """Which of :data:`KINDS` a checkpoint is, from what its transformers read.

    Args:
        models: of its transformers.
        vae: its codec, with latents of C channels.
        expand_timesteps: what ``model_index.json`` states (diffusers writes it for TI2V-5B); None where nothing does,
            and Wan2.2's codec then tells TI2V-5B, the only member that has it.
    Raises:
        ValueError: transformers that read neither C channels nor C + 4 + C (noise, mask, image), do not give C, differ
            among each other, or have patches that are longer than a latent frame where an image is to take one.
    """
    channels, (time, *_) = vae.config.z_dim, vae.strides
    with_image = 2 * channels + time
    reads, gives = {model.in_channels for model in models}, {model.out_channels for model in models}
    if gives != {channels} or reads not in ({channels}, {with_image}):
        raise ValueError(
            f"the transformers read {_listed(reads)} channels and give {_listed(gives)}, the codec's latents have "
            f"{channels}: expected all to read {channels} (from text), or all {with_image} (noise {channels}, mask "
            f"{time}, image {channels}), and to give {channels}"
        )
    if reads == {with_image}:
        return "i2v"
    if not (vae.config.residual if expand_timesteps is None else expand_timesteps):
        return "t2v"
    if any(model.patch[0] != 1 for model in models):
        raise ValueError("an image takes one latent frame, but the transformer's patches are longer (patch[0] > 1)")
    return "ti2v"


def check_images(kind: str, *, first: bool, last: bool) -> None:
    """Refuses images that a checkpoint of this kind has no use for, and the lack of one that it needs.

    Args:
        kind: one of :data:`KINDS`.
        first, last: whether an image for the first or the last frame is given.
    Raises: ValueError.
    """
    if kind == "t2v" and (first or last):
        raise ValueError(
            "the checkpoint is text-to-video (t2v): it takes no image. Leave the image out, or take an image-to-video "
            "checkpoint such as Wan2.2-I2V-A14B or Wan2.2-TI2V-5B"
        )
    if kind == "i2v" and not first:
        raise ValueError(
            "the checkpoint is image-to-video (i2v): it needs an image for the first frame"
            + (", not the last one alone" if last else "")
        )
    if kind == "ti2v" and last:
        raise ValueError("the checkpoint is text-and-image-to-video (ti2v): it takes a first image, but no last one")


def condition_on(
    kind: str, vae: WanVAE, vae_params: Any, first: Any | None, last: Any | None = None, *, frames: int
) -> Condition:
    """The condition of one clip (B = 1) for a checkpoint of a kind; those of several clips are stacked by
    ``jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *conditions)``.

    Args:
        kind: one of :data:`KINDS`.
        vae, vae_params: the codec.
        first, last: [H, W, 3] in [-1, 1] for the first and the last frame, or None.
        frames: T of the clip.
    Raises: ValueError as :func:`check_images`, :func:`image_channels`.
    """
    check_images(kind, first=first is not None, last=last is not None)
    if first is None:
        return Condition()
    if kind == "i2v":
        return image_channels(vae, vae_params, first, frames, last=last)
    return first_latents(vae, vae_params, first)


def image_channels(
    vae: WanVAE, vae_params: Any, image: Any, frames: int, *, last: Any | None = None
) -> ImageChannels:
    """I2V-A14B's condition of one clip: its first frame given, or its first and last.

    The codec reads the clip a few frames at a time: what it needs at once does not grow with T.

    Args:
        vae, vae_params: the codec.
        image, last: [H, W, 3] in [-1, 1].
        frames: T = 4n + 1; at least 5 with a last image.
    Raises: ValueError: images of different sizes, or sizes that the codec cannot take.
    """
    time = vae.strides[0]
    given = {0: np.asarray(image, np.float32)}
    if last is not None:
        if np.shape(last) != np.shape(image):
            raise ValueError(f"the last image is {np.shape(last)}, the first {np.shape(image)}: expected one size")
        if frames <= time:
            raise ValueError(f"frames = {frames}: a first and a last image need at least {time + 1}")
        given[frames - 1] = np.asarray(last, np.float32)
    grey = np.zeros((1, *given[0].shape), np.float32)
    video = (given[frame][None] if frame in given else grey for frame in range(frames))
    latents = jnp.concatenate(list(vae.stream({"params": vae_params}, video, method="encode")), axis=1)
    shown = np.isin(np.arange(frames), list(given)).astype(np.float32)
    return masked(latents, shown, time)


def masked(latents: Any, shown: np.ndarray, time: int) -> ImageChannels:
    """The condition of clips of which some frames are given.

    Args:
        latents: [B, F, h, w, C] of the clips with these frames alone.
        shown: [T] 1 where a frame is given, else 0.
        time: the codec's stride in time.
    """
    per_latent_frame = np.concatenate([np.repeat(shown[:1], time), shown[1:]]).reshape(-1, 1, 1, time)
    mask = jnp.broadcast_to(jnp.asarray(per_latent_frame, latents.dtype), (*latents.shape[:-1], time))
    return ImageChannels(jnp.concatenate([mask, latents], axis=-1))


def first_latents(vae: WanVAE, vae_params: Any, image: Any) -> FirstLatents:
    """TI2V-5B's condition of one clip: the latents of its first frame.

    Args:
        vae, vae_params: the codec.
        image: [H, W, 3] in [-1, 1].
    Raises: ValueError: a size that the codec cannot take.
    """
    video = np.asarray(image, np.float32)[None, None]
    return FirstLatents(vae.apply({"params": vae_params}, video, method="encode"))


def _listed(numbers: set[int]) -> str:
    return " and ".join(map(str, sorted(numbers)))
