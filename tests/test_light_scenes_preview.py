"""The page that shows every family, and the command that measures their speed."""

import html.parser
import subprocess
import sys
from pathlib import Path

import numpy as np

from data_pipelines.light_scenes import ALL, ClipSize, ClipSpec, render_clip
from data_pipelines.light_scenes.preview import pass_images

ROOT = Path(__file__).parent.parent


def test_page_shows_every_family_and_needs_nothing_else(tmp_path) -> None:
    out = tmp_path / "pages" / "scenes.html"
    command = [sys.executable, "-m", "data_pipelines.light_scenes.preview", "--out", str(out), "--scenes", "1",
               "--size", "16", "--split", "test"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{len(ALL)} families" in run.stdout
    headings, sources = [], []

    class Reader(html.parser.HTMLParser):
        inside = False

        def handle_starttag(self, tag, attrs):
            self.inside = tag == "h2"
            sources.extend(value for name, value in attrs if name in ("src", "href"))

        def handle_data(self, data):
            if self.inside:
                headings.append(data)
            self.inside = False

    Reader().feed(out.read_text(encoding="utf-8"))
    assert tuple(headings) == ALL
    assert len(sources) == 2 * 24 + 16 * len(ALL) and all(source.startswith("data:image/") for source in sources)


def test_a_family_that_does_not_exist_is_named(tmp_path) -> None:
    command = [sys.executable, "-m", "data_pipelines.light_scenes.preview", "--out", str(tmp_path / "page.html"),
               "--families", "moon"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode and "families moon: expected different names of" in run.stderr


def test_every_pass_has_a_picture() -> None:
    clip = render_clip(ClipSpec("street_lamp", 0, sweep=1), ClipSize(5, 48, 48))
    pictures = pass_images(clip)
    assert len(pictures) == 16
    assert all(picture.shape == (48, 48, 3) and picture.dtype == np.uint8 for picture in pictures.values())
    assert pictures["occluded"].any() and pictures["shadow flow known"].any()


def test_speed_is_measured_for_every_family() -> None:
    command = [sys.executable, "-m", "benchmarks.light_scenes_speed", "--clips", "1", "--size", "16", "--passes"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *families, summary = run.stdout.splitlines()
    assert [line.split()[0] for line in families] == list(ALL)
    assert "video and all passes, 16x16, 1 clips per family" in summary and "frames/s per core" in summary
