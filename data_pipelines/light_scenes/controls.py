"""Rendered clips on which an estimator proves itself: held-out ones as they are, and with a shadow that is wrong.

A wrong shadow is put in by image formation: ``linear = direct * visibility + ambient + specular`` with another share of
visibility where the ground or the wall behind it is seen. All else, the walker included, is as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from data_pipelines.light_scenes.clip import Clip, ClipSpec, render_clip
from data_pipelines.light_scenes.colour import LUMINANCE, linear_to_srgb
from data_pipelines.light_scenes.families import check_families
from data_pipelines.light_scenes.splits import group_of, group_size

GROUND = (0, 1)
"""Object ids of the street and the wall behind it, which ``street_lamp`` builds first."""

_AWAY = 0.2  # of the width: how far a detached shadow lies from where it belongs


def wrong_shadows(clip: Clip) -> dict[str, np.ndarray]:
    """Clips ``[T, H, W, 3]`` uint8 of a ``street_lamp`` scene whose walker has a shadow that is not his.

    - ``shadow removed``
    - ``shadow frozen``: it lies where it does in the middle of the clip
    - ``shadow of another time``: half of the clip early or late
    - ``shadow played backwards``
    - ``shadow mirrored`` about the walker, so that it points to the lamp
    - ``shadow detached`` by a fifth of the width
    - ``shadow carried along``: it moves with him and neither turns nor stretches

    Raises ValueError for a clip without a caster.
    """
    if clip.foot is None:
        raise ValueError(f"{clip.spec.kind}: has no walker whose shadow could be wrong")
    passes, foot = clip.passes, clip.foot
    ground = np.isin(passes.object_id, GROUND)
    share = _share(passes.shadowed @ LUMINANCE, passes.direct @ LUMINANCE)
    # What things that stand still cast stays: the walker's shadow is what darkens a place against its usual light.
    # Behind the walker it is not seen; where he or a thing is seen all the time no shadow is put.
    usual = np.median(np.where(ground, share, 1.0), axis=0)
    own = np.where(ground, np.clip(share / np.maximum(usual, 1e-3), 0, 1), 1.0).astype(np.float32)
    frames, width = len(own), own.shape[2]
    times = np.arange(frames)
    layers = {
        "shadow removed": np.ones_like(own),
        "shadow frozen": np.repeat(own[frames // 2][None], frames, 0),
        "shadow of another time": np.roll(own, frames // 2, axis=0),
        "shadow played backwards": own[::-1],
        "shadow mirrored": np.stack([_mirrored(own[t], float(foot[t, 0])) for t in times]),
        "shadow detached": np.stack([_moved(layer, _AWAY * width) for layer in own]),
        "shadow carried along": np.stack([_moved(own[0], float(foot[t, 0] - foot[0, 0])) for t in times]),
    }

    def picture(layer: np.ndarray) -> np.ndarray:
        lit = np.where(ground[..., None], passes.direct * (usual * layer)[..., None], passes.shadowed)
        return np.round(linear_to_srgb(lit + passes.ambient + passes.specular) * np.float32(255)).astype(np.uint8)

    return {name: picture(layer) for name, layer in layers.items()}


def rendered_checks(kinds: Sequence[str], clips: int) -> Iterator[tuple[np.ndarray, float, Mapping[str, Any]]]:
    """Frames, rate and facts of held-out clips, and of controls, for ``wanjax.scoring.check_estimator``.

    Args:
      kinds: families or variants as named in ``families.ALL``.
      clips: how many of each, every combination of signs in turn; with each of ``street_lamp`` its wrong shadows.
    """
    for kind in check_families(tuple(kinds)):
        for spec in _specs(kind, clips):
            clip = render_clip(spec)
            facts = _facts(spec)
            yield clip.video, clip.size.fps, facts
            if kind == "street_lamp":
                stated = {"family": spec.family, "shadow_follows": 1}
                for control, frames in wrong_shadows(clip).items():
                    yield frames, clip.size.fps, {**stated, "control": control}


def _facts(spec: ClipSpec) -> dict[str, Any]:
    """What a clip shows, under the names of the facts of a sample; the shadow is judged under a still camera alone."""
    facts: dict[str, Any] = {"family": spec.family, "variant": spec.variant, "exposure_change": spec.exposure_change}
    facts |= {"sweep": spec.sweep, "glints": spec.glints, "color_change": spec.exposure_change}
    return facts | ({"shadow_follows": 1} if spec.kind == "street_lamp" else {})


def _specs(kind: str, clips: int) -> list[ClipSpec]:
    scenes = -(-clips // group_size((kind,)))
    return [spec for scene in range(scenes) for spec in group_of(scene, "test", 0, (kind,))][:clips]


def _share(shadowed: np.ndarray, direct: np.ndarray) -> np.ndarray:
    """Visibility of what a pixel shows; 1 where no direct light would arrive anyway."""
    return np.where(direct > 1e-4, shadowed / np.maximum(direct, 1e-4), 1.0)


def _moved(layer: np.ndarray, by: float) -> np.ndarray:
    """A layer ``[H, W]`` moved to the right; what comes in is lit."""
    height, width = layer.shape
    return cv2.warpAffine(layer, np.array([[1.0, 0.0, by], [0.0, 1.0, 0.0]]), (width, height), borderValue=1.0)


def _mirrored(layer: np.ndarray, x: float) -> np.ndarray:
    """A layer ``[H, W]`` mirrored about the column ``x``; what comes in is lit."""
    height, width = layer.shape
    return cv2.warpAffine(layer, np.array([[-1.0, 0.0, 2 * x], [0.0, 1.0, 0.0]]), (width, height), borderValue=1.0)
