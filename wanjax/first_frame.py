"""A clip's first frame, given: what a transformer is shown of it in training, by which it learns image-to-video.

There are two ways, told apart by how many channels a transformer reads:

* as many as it predicts (TI2V-5B): the first latent frame, which is the causal codec's code of the first frame alone,
  is clean, and its tokens have timestep 0;
* 2 C + 4 (I2V-A14B): noisy latents, a mask that is 1 where frames are given (a channel for each frame of a latent), and
  latents of the clip whose other frames are grey, 0 in [-1, 1].

Source: ``wan/textimage2video.py`` and ``wan/image2video.py`` of github.com/Wan-Video/Wan2.2, which sample so; how their
weights were trained is not published.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

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


def hold(x: jax.Array, first: jax.Array, given: jax.Array | np.ndarray) -> jax.Array:
    """``x`` with the first latent frame of ``first`` in the clips that are given it.

    Args:
        x, first: [B, F, h, w, C].
        given: bool [B].
    """
    where = jnp.asarray(given)[:, None] & (jnp.arange(x.shape[1]) == 0)
    return jnp.where(where[:, :, None, None, None], first, x)


def token_timesteps(timestep: jax.Array, given: jax.Array | np.ndarray, grid: tuple[int, int, int]) -> jax.Array:
    """Timesteps [B, N] of tokens: 0 for those of a given first frame, the clip's own for all others.

    Args:
        timestep: [B].
        given: bool [B].
        grid: tokens in time, height, width (``DiTConfig.grid``); a token spans one latent frame.
    """
    frames, height, width = grid
    first = jnp.asarray(given)[:, None] & (jnp.arange(frames) == 0)
    return jnp.repeat(jnp.where(first, 0.0, timestep[:, None]), height * width, axis=1)


def beside(x: jax.Array, image: jax.Array, channels: int) -> jax.Array:
    """Noisy latents, mask and image latents in a transformer's order.

    Args:
        x: [B, F, h, w, C] noisy latents.
        image: [B, F, h, w, C] latents of :func:`alone`.
        channels: that the transformer reads; the mask has those that are left.
    """
    first = (jnp.arange(x.shape[1]) == 0).astype(x.dtype)[:, None, None, None]
    mask = jnp.broadcast_to(first, (*x.shape[:-1], channels - x.shape[-1] - image.shape[-1]))
    return jnp.concatenate([x, mask, image], axis=-1)


def network_inputs(
    config: DiTConfig,
    x: jax.Array,
    timestep: jax.Array,
    x0: jax.Array,
    given: jax.Array | np.ndarray | None,
    image: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Latents and timesteps as the transformer reads them.

    Args:
        config: of the transformer.
        x: [B, F, h, w, C] noisy latents.
        timestep: [B].
        x0: [B, F, h, w, C] the clean latents, of which nothing but the first frame is used.
        given: bool [B], clips whose first latent frame is clean; None: no clip's.
        image: [B, F, h, w, C] image latents, of a transformer that reads them.
    Returns: latents [B, F, h, w, in_channels], and timesteps [B], or [B, N] where ``given`` is not None.
    Raises: ValueError where image latents are needed and absent.
    """
    if reads_image(config):
        if image is None:
            raise ValueError(f"the transformer reads {config.in_channels} channels, image latents among them, and the "
                             "batch has no \"image\"")
        return beside(x, image, config.in_channels), timestep
    if given is None:
        return x, timestep
    frames, height, width = x.shape[1:4]
    return hold(x, x0, given), token_timesteps(timestep, given, config.grid((frames, height, width)))
