"""A page that shows every family: ``python -m data_pipelines.light_scenes.preview --out page.html``.

One self-contained file: for each family counterfactual clips of a few scenes, moving and as a row of frames, with their
captions and what is known of their light, and every pass of one frame.
"""

import base64
import html
import io
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

from data_pipelines.light_scenes.captions import captions
from data_pipelines.light_scenes.clip import Clip, ClipSpec, render_clip
from data_pipelines.light_scenes.colour import linear_to_srgb
from data_pipelines.light_scenes.families import ALL, parse_families
from data_pipelines.light_scenes.parameters import SPLITS, ClipSize
from data_pipelines.light_scenes.splits import group_of

OUT = flags.DEFINE_string("out", None, "HTML file to write.", required=True)
FAMILIES = flags.DEFINE_string("families", "all", f"'all', or names separated by commas, of: {', '.join(ALL)}.")
SCENES = flags.DEFINE_integer("scenes", 2, "Scenes of each family.", lower_bound=1)
FIRST = flags.DEFINE_integer("first", 0, "Index of the first scene.", lower_bound=0)
SPLIT = flags.DEFINE_enum("split", "train", SPLITS, "Split that the scenes are of.")
SIDE = flags.DEFINE_integer("size", 96, "Height and width in pixels.", lower_bound=16)

_FRAMES_SHOWN = 6
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; border-top: 1px solid var(--line);
  padding-top: 1.2rem; }
.clip { display: grid; grid-template-columns: 10rem 1fr; gap: .2rem 1rem; margin: 0 0 1rem; align-items: center; }
.clip > img, .sheet, .passes img { image-rendering: pixelated; display: block; }
.clip > img { width: 10rem; } .clip > .sheet { width: 100%; }
.clip p { grid-column: 1 / -1; margin: 0; }
.clip .facts { opacity: .7; font-size: .85rem; font-variant-numeric: tabular-nums; }
.passes { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.2rem, 1fr)); gap: .6rem; }
.passes figure { margin: 0; } .passes img { width: 100%; } figcaption { font-size: .75rem; opacity: .8; }
"""


def encoded(frames: np.ndarray, *, seconds: float | None = None) -> str:
    """``frames [H, W, 3]`` uint8 as a PNG, or ``[T, H, W, 3]`` as a moving WebP of ``seconds`` a frame; a data URI."""
    buffer = io.BytesIO()
    if seconds is None:
        Image.fromarray(frames).save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        first, *rest = (Image.fromarray(frame) for frame in frames)
        duration = round(1000 * seconds)
        first.save(buffer, "WEBP", save_all=True, append_images=rest, duration=duration, loop=0, lossless=True)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def clip_block(clip: Clip) -> str:
    """One clip: moving, as a row of frames, with its captions and its light in numbers."""
    shown = np.linspace(0, len(clip.video) - 1, _FRAMES_SHOWN).round().astype(int)
    sheet = np.concatenate(list(clip.video[shown]), 1)
    texts = captions(clip.spec)
    facts = " · ".join([
        clip.spec.scene_id,
        f"exposure {clip.exposure_slope:+.2f} stops/s",
        f"color {clip.cct_slope:+.0f} mired/s",
        f"sweep {clip.sweep_rate:+.2f} frame widths/s",
        f"light {clip.light_cct[0]:.0f} → {clip.light_cct[-1]:.0f} K",
    ])
    return (f'<div class="clip"><img src="{encoded(clip.video, seconds=1 / clip.size.fps)}" alt="the clip, moving">'
            f'<img class="sheet" src="{encoded(sheet)}" alt="{_FRAMES_SHOWN} frames of the clip">'
            f'<p>{html.escape(texts["en"])} · <span lang="zh">{html.escape(texts["zh"])}</span></p>'
            f'<p class="facts">{html.escape(facts)}</p></div>')


def pass_images(clip: Clip) -> dict[str, np.ndarray]:
    """Every pass of the middle frame as a picture ``[H, W, 3]`` uint8."""
    passes, t = clip.passes, len(clip.video) // 2
    before = max(0, min(t, len(clip.video) - 2))
    pictures = {name: linear_to_srgb(getattr(passes, name)[t]) for name in (
        "direct", "shadowed", "ambient", "specular", "albedo")}
    pictures |= {
        "visibility": grey(passes.visibility[t]),
        "hard visibility": grey(passes.hard_visibility[t]),
        "normal": passes.normal[t] * [0.5, -0.5, 0.5] + 0.5,
        "depth (log)": grey(1 - _spread(np.log(passes.depth[t]))),
        "object id": _palette(passes.object_id[t]),
    }
    if len(clip.video) > 1:
        pictures |= {
            "flow": flow_picture(passes.flow.motion[before]),
            "flow backward": flow_picture(passes.flow_backward.motion[before]),
            "occluded": grey(passes.flow.occluded[before]),
            "occluded backward": grey(passes.flow_backward.occluded[before]),
            "shadow flow": flow_picture(passes.shadow_flow[before]),
            "shadow flow known": grey(passes.shadow_flow_known[before]),
        }
    return {name: np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8) for name, picture in pictures.items()}


def grey(values: np.ndarray) -> np.ndarray:
    """``[H, W]`` in [0, 1] as ``[H, W, 3]``."""
    return np.repeat(np.asarray(values, np.float32)[..., None], 3, -1)


def flow_picture(flow: np.ndarray) -> np.ndarray:
    """Flow ``[H, W, 2]`` as color ``[H, W, 3]``: hue is its direction, saturation its length."""
    length = np.hypot(flow[..., 0], flow[..., 1])
    angle = np.arctan2(flow[..., 1], flow[..., 0])
    hue = 0.5 + 0.5 * np.cos(angle[..., None] - 2 * np.pi * np.array([0.0, 1 / 3, 2 / 3]))
    return 1 - (length / max(float(length.max()), 1e-6))[..., None] * (1 - hue)


def _spread(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, [0, 95])
    return np.clip((values - low) / max(high - low, 1e-6), 0, 1)


def _palette(ids: np.ndarray) -> np.ndarray:
    angle = 2 * np.pi * (ids[..., None] * 0.382 - np.array([0.0, 1 / 3, 2 / 3]))
    return 0.55 + 0.4 * np.cos(angle)


def family_block(kind: str, scenes: range, split: str, size: ClipSize) -> str:
    """A family: its clips, and the passes of the first."""
    specs: list[ClipSpec] = [spec for scene in scenes for spec in group_of(scene, split, 0, (kind,))]
    clips = [render_clip(spec, size) for spec in specs]
    figures = "".join(f'<figure><img src="{encoded(picture)}" alt="{name}"><figcaption>{name}</figcaption></figure>'
                      for name, picture in pass_images(clips[0]).items())
    return (f"<section><h2>{kind}</h2>{''.join(map(clip_block, clips))}"
            f"<details open><summary>Passes of the first clip, middle frame</summary>"
            f'<div class="passes">{figures}</div></details></section>')


def page(kinds: tuple[str, ...], scenes: range, split: str, size: ClipSize) -> str:
    """The whole page."""
    blocks = "".join(family_block(kind, scenes, split, size) for kind in kinds)
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>light_scenes</title>'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
            f"<h1>light_scenes</h1><p>Rendered clips, {size.height}×{size.width} pixels, {size.frames} frames at "
            f"{size.fps:g} per second, split {split}. Clips of one scene differ in what their captions state alone.</p>"
            f"{blocks}</body></html>\n")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    try:
        kinds = parse_families(FAMILIES.value)
    except ValueError as error:
        raise app.UsageError(str(error)) from error
    out = Path(OUT.value)
    scenes = range(FIRST.value, FIRST.value + SCENES.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(kinds, scenes, SPLIT.value, ClipSize(height=SIDE.value, width=SIDE.value)), encoding="utf-8")
    print(f"{out}: {len(kinds)} families, {out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    app.run(main)
