"""How often what a caption may state is read off a clip rightly, and how often a control that has it wrong is believed.

    python benchmarks/light_answers.py --clips 100
    python benchmarks/light_answers.py --clips 50 --seen coded --codec CODEC

Held-out scenes of every family are rendered, and of the street lamp's walker with shadows that are not his; then
measured as they are, ``soft`` (blurred by 1 pixel, flicker of 3 %, noise of 1.5 % of the range), or ``coded`` (encoded
and decoded by a codec, by name or folder). The table is written to --out with machine and date.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipelines.light_scenes import parse_families, rendered_checks
from wanjax.codec import open_codec
from wanjax.generate import to_uint8
from wanjax.scoring import check_estimator, scored_answers
from wanjax.uncertainty import wilson_interval

SEEN = ("rendered", "soft", "coded")
Seen = Callable[[np.ndarray], np.ndarray]


def soft(seed: int) -> Seen:
    """Blur, flicker and noise, as a weak model leaves them."""
    rng = np.random.default_rng(seed)

    def seen(video: np.ndarray) -> np.ndarray:
        blurred = np.stack([cv2.GaussianBlur(frame.astype(np.float32), (0, 0), 1.0) for frame in video])
        flicker = 1 + 0.03 * rng.standard_normal((len(video), 1, 1, 1))
        return np.round(np.clip(blurred * flicker + rng.normal(0, 4, video.shape), 0, 255)).astype(np.uint8)

    return seen


def coded(name: str) -> Seen:
    """Encoded and decoded."""
    codec = open_codec(name)

    @jax.jit
    def through(params: Any, x: jax.Array) -> jax.Array:
        latents = codec.model.apply({"params": params}, x, method="encode")
        return codec.model.apply({"params": params}, latents, method="decode")

    def seen(video: np.ndarray) -> np.ndarray:
        x = jnp.asarray(video[None].astype(np.float32) / 127.5 - 1)
        return to_uint8(through(codec.params, x)[0])

    return seen


def table(check: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row per kind of scene and answer."""
    rows = ["| scenes | answer | right | 95 % interval | controls believed |", "|---|---|---|---|---|"]
    for kind, family in check.items():
        both = "`exposure_change`" if "glints" in family.get("answers", {}) else "`exposure_change` and `sweep`"
        entries = {both: {"of": family["clips"], "right": family["forward"], "controls": {
            "played backwards": {"of": family["clips"], "right": family["backward"]}}}}  # fmt: skip
        entries |= {f"`{name}`": entry for name, entry in family.get("answers", {}).items()}
        for name, entry in entries.items():
            low, high = wilson_interval(entry["right"], entry["of"])
            controls = ", ".join(f"{c} {n['right']} of {n['of']}" for c, n in entry["controls"].items())
            rows.append(f"| `{kind}` | {name} | {entry['right']} of {entry['of']} | {100 * low:.0f}–{100 * high:.0f} % "
                        f"| {controls or '–'} |")  # fmt: skip
    scored = ", ".join(f"`{name}`" for name in sorted(scored_answers(check))) or "none"
    return "\n".join([*rows, "", f"Optional answers that may be scored: {scored}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100, help="of each family or variant")
    parser.add_argument("--families", default="all", help="'all', or names separated by commas")
    parser.add_argument("--seen", choices=SEEN, default="rendered")
    parser.add_argument("--codec", help="for --seen coded: name or folder")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if (options.seen == "coded") != bool(options.codec):
        parser.error("--codec says what --seen coded goes through: give both or neither")
    seen: Seen = {"rendered": lambda: lambda video: video, "soft": lambda: soft(0),
                  "coded": lambda: coded(options.codec)}[options.seen]()  # fmt: skip

    def clips() -> Iterator[tuple[np.ndarray, float, Any]]:
        for video, fps, facts in rendered_checks(parse_families(options.families), options.clips):
            yield seen(video), fps, facts

    command = f"--clips {options.clips} --families {options.families} --seen {options.seen}"
    command += f" --codec {options.codec}" if options.codec else ""
    text = (
        f"`python benchmarks/light_answers.py {command}`, {platform.machine()}, {datetime.date.today():%d %B %Y}.\n\n"
        f"{table(check_estimator(clips()))}\n"
    )
    print(text)
    out = options.out or Path(__file__).parent / "results" / f"light_answers_{options.seen}.md"
    out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
