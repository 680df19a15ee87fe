"""A codec with what the project knows about it: weights, luminance vector, fingerprint."""
from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from typing import Any

from wanjax import hub
from wanjax.hub_layouts import ORBAX_PARAMS, is_orbax
from wanjax.light import luminance
from wanjax.models.vae import WanVAE
from wanjax.weight_files import SUFFIXES

SHIPPED = pathlib.Path(__file__).parent / "assets"


@dataclasses.dataclass(frozen=True)
class Codec:
    """Attributes:
      model, params: for ``model.apply({"params": params}, video, method="encode")``.
      luminance: the fit of docs/light.md, or None where the folder has no luminance.json.
      fingerprint: SHA-256 of config and weights files; latents made by another codec are refused by it.
      folder: where it was read.
    """

    model: WanVAE
    params: Any
    luminance: luminance.LuminanceFit | None
    fingerprint: str
    folder: pathlib.Path


def find_codec(name_or_folder: str) -> pathlib.Path:
    """The folder of a shipped codec (``"light_scenes_tiny"``), or the given folder.

    Raises:
      FileNotFoundError: naming the shipped ones.
    """
    shipped = SHIPPED / f"codec_{name_or_folder}"
    if "/" not in name_or_folder and shipped.is_dir():
        return shipped
    folder = pathlib.Path(name_or_folder)
    if not folder.is_dir():
        names = sorted(p.name.removeprefix("codec_") for p in SHIPPED.glob("codec_*"))
        raise FileNotFoundError(f"codec {name_or_folder!r} is neither a folder nor one of the shipped ones "
                                f"({', '.join(names)}): give a folder in the diffusers vae layout")
    return folder


def open_codec(name_or_folder: str, *, dtype: str | None = "float32") -> Codec:
    """Opens a codec by name or folder.

    Args:
      dtype: of parameters and decoder, as for ``hub.load_vae`` (None: the stored one). float32 whatever the file holds
        unless asked otherwise: a short type changes the light of frames (docs/codec.md).

    Raises:
      FileNotFoundError: no such codec, naming the shipped ones.
      ValueError: as ``hub.load_vae``.
    """
    folder = find_codec(name_or_folder)
    model, params = hub.load_vae(folder, dtype=dtype)
    digest = hashlib.sha256()
    files = [f for f in folder.iterdir() if f.name == "config.json" or f.suffix in SUFFIXES]
    if is_orbax(folder):
        files += [f for f in (folder / ORBAX_PARAMS).rglob("*") if f.is_file()]
    for file in sorted(files):
        digest.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    fit = folder / "luminance.json"
    return Codec(model, params, luminance.load(fit) if fit.exists() else None, digest.hexdigest(), folder)
