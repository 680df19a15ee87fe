"""Checkpoints in and out: the networks of the diffusers layout, of Wan's own, of ComfyUI, and in our own through orbax.

What each tensor is called and how it is laid out stands in :mod:`wanjax.models.rows`. Every ``load_*`` takes one
network's folder (or its single file) and returns ``(model, params)`` for ``model.apply({"params": params}, ...)``.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

from jax.sharding import Mesh

from wanjax import hub_writing
from wanjax.hub_layouts import is_official, layout_of, open_layout
from wanjax.hub_networks import ArrayWeights, Network, rows_of
from wanjax.hub_opening import DTYPES, digest, open_network
from wanjax.models.dit import WanDiT
from wanjax.models.umt5 import UMT5Encoder
from wanjax.models.vae import WanVAE

__all__ = [
    "DTYPES", "LAYOUTS", "digest", "is_official", "layout_of", "load_dit", "load_text_encoder", "load_vae",
    "network_of", "open_layout", "open_network", "save_dit", "save_network", "save_text_encoder", "save_vae",
]  # fmt: skip

LAYOUTS = (*hub_writing.LAYOUTS, "orbax")

_PathLike = str | os.PathLike[str]
_KINDS = {WanDiT: "transformer", WanVAE: "vae", UMT5Encoder: "text_encoder"}


def load_dit(folder: _PathLike, *, dtype: str | None = None, mesh: Mesh | None = None) -> tuple[WanDiT, Any]:
    """Opens a transformer in any layout, told apart by its tensors' names, and places it row by row.

    Sizes that ``config.json`` omits (the official one omits several) are read from the tensors' shapes. A single
    ``.safetensors`` file with official names, as ComfyUI keeps it, opens as well, ``fp8_scaled`` included: 8-bit
    weights are read times their scale. Host memory holds about one stacked array; of a mesh, only what this process's
    devices hold is read.

    Args:
        folder: ``transformer/``, ``high_noise_model/`` ..., or one file.
        dtype: of parameters and compute; None takes the stored one, bfloat16 for 8-bit floats.
        mesh: devices to spread the parameters over; None is one device.

    Raises:
        FileNotFoundError: no such folder, no weights in it, or shards missing.
        ValueError: a pipeline's root (the message lists its parts), a damaged file, a config that describes another
            network, or tensors missing, unexpected or of the wrong shape (all in one message).
    """
    network = open_network(folder, "transformer", dtype=dtype)
    return WanDiT(network.config, mesh), network.place(None if mesh is None else network.over(mesh))


def load_vae(path_or_folder: _PathLike, *, dtype: str | None = None) -> tuple[WanVAE, Any]:
    """Opens a codec: a folder, a single safetensors file, or the official ``Wan2.1_VAE.pth``.

    What no config states is read from the tensors; the statistics of latents are then the published ones.

    Args and errors as for :func:`load_dit`; ``dtype`` is that of the parameters and of the decoder, the encoder
    computes in float32 (``VAEConfig.encoder_dtype``).
    """
    network = open_network(path_or_folder, "vae", dtype=dtype)
    return WanVAE(network.config), network.place()


def load_text_encoder(
    folder: _PathLike, *, dtype: str | None = None, mesh: Mesh | None = None
) -> tuple[UMT5Encoder, Any]:
    """Opens a umT5 encoder: a folder, a single file, or the official ``models_t5_umt5-xxl-enc-bf16.pth``.

    Without a config, sizes are read from the tensors and the rest is umT5's (128 as the farthest distance told apart).

    Args and errors as for :func:`load_dit`.
    """
    network = open_network(folder, "text_encoder", dtype=dtype)
    return UMT5Encoder(network.config, mesh), network.place(None if mesh is None else network.over(mesh))


def save_dit(
    folder: _PathLike,
    model: WanDiT,
    params: Any,
    *,
    layout: str = "diffusers",
    max_shard_bytes: int = hub_writing.SHARD_BYTES,
    fp8: bool = False,
) -> float:
    """Writes a transformer; the parameters' own dtype is what is stored.

    Args:
        folder: made if absent; files of an earlier save are replaced once the new ones are complete ("orbax": it must
            not exist).
        layout: "diffusers" (opened by ``WanTransformer3DModel.from_pretrained``), "official" (as in
            ``high_noise_model/``), "comfyui" (``diffusion_model.safetensors`` alone, official names) or "orbax".
        max_shard_bytes: larger weights are split, with an index; ComfyUI's single file never is.
        fp8: of the "comfyui" layout: the matrices of all blocks in 8 bits with a scale each (``fp8_scaled``).

    Returns:
        Root mean square of what 8 bits changed relative to that of the matrices; 0.0 without ``fp8``.

    Raises:
        ValueError: an unknown layout, ``fp8`` in another layout, or parameters that are not this model's.
    """
    return save_network(folder, network_of(model, params), layout=layout, max_shard_bytes=max_shard_bytes, fp8=fp8)


def save_vae(folder: _PathLike, model: WanVAE, params: Any, *, layout: str = "diffusers") -> None:
    """Writes a codec.

    Args:
        folder: made if absent ("orbax": it must not exist).
        layout: "diffusers" (as ``AutoencoderKLWan.from_pretrained`` opens it), "official": ``Wan2.1_VAE.safetensors``
            or ``Wan2.2_VAE.safetensors`` with the names of the ``.pth`` file, its sizes in the file's header,
            "comfyui": the same as ``wan_2.1_vae.safetensors`` or ``wan2.2_vae.safetensors``; or "orbax".

    Raises:
        ValueError: an unknown layout, or parameters that are not this model's.
    """
    save_network(folder, network_of(model, params), layout=layout)


def save_text_encoder(
    folder: _PathLike,
    model: UMT5Encoder,
    params: Any,
    *,
    layout: str = "diffusers",
    max_shard_bytes: int = hub_writing.SHARD_BYTES,
) -> None:
    """Writes a text encoder.

    Args:
        folder: made if absent ("orbax": it must not exist).
        layout: "diffusers" (as ``UMT5EncoderModel.from_pretrained`` opens it), "official": one file
            ``models_t5_umt5-xxl-enc-bf16.safetensors`` (or fp16, fp32) with the names of the ``.pth`` called so,
            "comfyui": one file ``umt5_xxl_bf16.safetensors`` with transformers' names; or "orbax".
        max_shard_bytes: larger weights are split, with an index; a single file never is.

    Raises:
        ValueError: an unknown layout, or parameters that are not this model's.
    """
    save_network(folder, network_of(model, params), layout=layout, max_shard_bytes=max_shard_bytes)


def network_of(model: WanDiT | WanVAE | UMT5Encoder, params: Any) -> Network:
    """A network in memory.

    Raises:
        ValueError: the parameters are not this model's.
    """
    rows = rows_of(model.config)
    return Network(_KINDS[type(model)], model.config, ArrayWeights(params, rows), "parameters in memory")


def save_network(
    folder: _PathLike,
    network: Network,
    *,
    layout: str,
    stem: str | None = None,
    max_shard_bytes: int = hub_writing.SHARD_BYTES,
    fp8: bool = False,
    vocabulary: bytes | None = None,
    pth: bool = False,
) -> float:
    """Writes a network that is open, wherever its weights are; as :func:`save_dit`.

    ``stem``, ``vocabulary`` and ``pth``: see :func:`wanjax.hub_writing.write_network`; "orbax" has no use for them.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    if layout != "orbax":
        return hub_writing.write_network(network, folder, layout=layout, stem=stem, max_shard_bytes=max_shard_bytes,
                                         fp8=fp8, vocabulary=vocabulary, pth=pth)  # fmt: skip
    if pth:
        raise ValueError("pth is of the layout 'official' alone")
    if fp8:
        raise ValueError("fp8 is of the layout 'comfyui' alone; layout 'orbax' keeps the parameters' own type")
    from wanjax import hub_orbax  # importing orbax takes a second that other layouts need not wait

    hub_orbax.write_network(network, pathlib.Path(folder), source=network.source)
    return 0.0
