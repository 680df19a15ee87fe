"""The luminance vector m: how a normalised latent maps to the mean linear luminance of its cell.

``luminance ~ m . latent + bias``, fitted by least squares on the codec in use (docs/light.md, the ``light`` term).
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class LuminanceFit:
    """A least-squares fit of cell luminance on latents.

    Attributes:
        m: [C] linear luminance (white = 1) per unit of each normalised latent channel.
        bias: luminance of the zero latent.
        r2: share of the variance of luminance that the fit explains, on the cells that it was fitted on.
        fitted_on: what those cells were.
    """

    m: tuple[float, ...]
    bias: float
    r2: float
    fitted_on: str = ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``luminance.json``."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n")


def load(path: str | os.PathLike[str]) -> LuminanceFit:
    """Read what :meth:`LuminanceFit.save` wrote.

    Raises:
        ValueError: naming the file and the field that is missing or unknown.
    """
    fields = json.loads(Path(path).read_text())
    expected = {"m", "bias", "r2", "fitted_on"}
    if set(fields) != expected:
        raise ValueError(
            f"{path}: fields {sorted(fields)}; expected {sorted(expected)}: fit it again with "
            "python -m experiments.train_codec --fit_luminance --checkpoint DIR"
        )
    return LuminanceFit(
        tuple(map(float, fields["m"])), float(fields["bias"]), float(fields["r2"]), fields["fitted_on"]
    )


def cell_luminance(linear_luminance: np.ndarray, *, time: int = 4, space: int = 8) -> np.ndarray:
    """Mean luminance of every latent's cell.

    Args:
        linear_luminance: [n, T, H, W], linear, white = 1; T = 1 + time * k.
        time, space: strides of the codec. The first latent frame stands for the first frame alone.

    Returns:
        [n, F, h, w].
    """
    n, frames, height, width = linear_luminance.shape
    cells = linear_luminance.reshape(n, frames, height // space, space, width // space, space).mean((3, 5))
    rest = cells[:, 1:].reshape(n, (frames - 1) // time, time, *cells.shape[2:]).mean(2)
    return np.concatenate([cells[:, :1], rest], axis=1)


def fit_luminance(latents: np.ndarray, linear_luminance: np.ndarray, *, fitted_on: str = "") -> LuminanceFit:
    """Fit m and the bias by least squares, in float64.

    Args:
        latents: [n, F, h, w, C], normalised.
        linear_luminance: [n, F, h, w], mean linear luminance of each cell (see :func:`cell_luminance`).
        fitted_on: what the clips are, stored with the fit.

    Raises:
        ValueError: shapes that do not belong together, or luminance that never changes.
    """
    if latents.shape[:-1] != linear_luminance.shape:
        raise ValueError(
            f"latents {latents.shape} and luminance {linear_luminance.shape} must agree in all axes but the channel"
        )
    x = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
    y = linear_luminance.reshape(-1).astype(np.float64)
    total = float(((y - y.mean()) ** 2).sum())
    if total == 0:
        raise ValueError(
            f"all {y.size} cells have the luminance {y[0]}: m cannot be fitted; give clips that differ"
        )
    design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    r2 = 1 - float(((y - design @ solution) ** 2).sum()) / total
    return LuminanceFit(tuple(map(float, solution[:-1])), float(solution[-1]), r2, fitted_on)
