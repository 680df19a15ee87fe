"""Training clips as continuations of their own first frame, by which a transformer learns image-to-video.

It is shown that frame as in sampling (``wanjax.conditions``), in one of two ways that are told apart by how many
channels it reads: as many as it predicts (TI2V-5B: the first latent frame, which is the causal codec's code of the
first frame alone, is clean), or 2 C + 4 (I2V-A14B: mask and latents of the frame lie beside the noise). How the
published weights were trained is not published.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from wanjax.conditions import Condition, FirstLatents, masked
from wanjax.models.dit_config import DiTConfig


def reads_image(config: DiTConfig) -> bool:
    """Whether a transformer reads mask and image latents beside the noisy ones."""
    return config.in_channels > config.out_channels


def image_channels(latent_channels: int, time: int = 4) -> int:
    """Channels that such a transformer reads, for C channels of latents and the codec's stride in time."""
    return 2 * latent_channels + time


def alone(first: jax.Array, frames: int) -> jax.Array:
    """A clip whose first frame alone is known: [B, 1, H, W, 3] in [-1, 1] -> [B, frames, H, W, 3], grey after it."""
    return jnp.pad(first, ((0, 0), (0, frames - 1), (0, 0), (0, 0), (0, 0)))


def draw(config: DiTConfig, probability: float, key: jax.Array, clips: int) -> jax.Array | None:
    """Which clips of a training batch have a clean first latent frame, bool [clips]; None: none can have."""
    if reads_image(config) or probability == 0.0:
        return None
    return jax.random.bernoulli(key, probability, (clips,))


def share(config: DiTConfig, probability: float, clips: int, batch: int | None = None) -> np.ndarray | None:
    """The same where nothing is left to chance: the first of the clips, as large a share as ``probability``.

    Args:
        clips: that count.
        batch: B, ``clips`` and what is filled up behind them; by default ``clips``.
    Returns: bool [B], or None.
    """
    if reads_image(config) or probability == 0.0:
        return None
    return np.arange(batch or clips) < round(probability * clips)


def condition(
    config: DiTConfig, x0: jax.Array, given: jax.Array | np.ndarray | None, image: jax.Array | None
) -> Condition:
    """How a batch of training clips is shown to its transformer.

    Args:
        config: of the transformer.
        x0: [B, F, h, w, C] clean latents, of which nothing but the first frame is used.
        given: bool [B], clips whose first latent frame is clean; None: no clip's.
        image: [B, F, h, w, C] latents of :func:`alone`, for a transformer that reads them.
    Raises: ValueError where these are needed and absent.
    """
    if reads_image(config):
        if image is None:
            raise ValueError(f"the transformer reads {config.in_channels} channels, image latents among them, and the "
                             "batch has no \"image\"")
        time = config.in_channels - x0.shape[-1] - image.shape[-1]
        return masked(image, np.arange(1 + (image.shape[1] - 1) * time) == 0, time)
    return Condition() if given is None else FirstLatents(x0[:, :1], jnp.asarray(given))


def exact(velocity: jax.Array, target: jax.Array, given: jax.Array | np.ndarray | None) -> jax.Array:
    """The predicted velocity with the true one in its given first frames, which are not learned; [B, F, h, w, C]."""
    return velocity if given is None else FirstLatents(target[:, :1], jnp.asarray(given)).after_step(velocity)
