"""The report's page: what it shows, how large it gets, and that everyone can read it."""

import base64
import re
import shutil
import subprocess
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.test_compare import clip, measured
from tests.test_video_kinds import BT2020, PQ, record
from wanjax import report, report_media, video
from wanjax.compare import compare
from wanjax.evaluate import ClipRecord, Reference, evaluate_clips
from wanjax.report_charts import Line, line_chart, stem_chart, whisker
from wanjax.report_style import STYLE

FPS = 8.0
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def corner(tmp_path) -> Path:
    """A still wall whose lower right corner alone flickers."""
    wall = clip(0, slope=0.0).astype(float)
    wall[:, 20:30, 20:30] *= 1 + 0.15 * (-1) ** np.arange(len(wall))[:, None, None, None]
    video.write(tmp_path / "corner.mp4", np.round(np.clip(wall, 0, 255)).astype(np.uint8), FPS)
    return tmp_path / "corner.mp4"


def page_of(*paths: Path, **facts) -> str:
    return report.render(evaluate_clips([ClipRecord(p, facts) for p in paths]), title="clips")


def picture(uri: str) -> np.ndarray:
    data = np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(float)


def test_the_flicker_map_is_hot_where_it_flickers_and_cold_elsewhere(corner):
    result = evaluate_clips([ClipRecord(corner)]).clips[0].clip
    spot = result.hotspot
    assert 20 / 32 < spot["x"] < 30 / 32
    assert 20 / 32 < spot["y"] < 30 / 32
    heat = result.curves.flicker_map
    assert heat[22:28, 22:28].mean() > 20 * heat[:14, :14].mean()
    shown = picture(report_media.heat_picture(result, spot["stops"])).sum(axis=-1)
    side = len(shown)
    assert shown[int(0.7 * side) : int(0.88 * side), int(0.7 * side) : int(0.88 * side)].mean() > 500
    assert shown[: int(0.4 * side), : int(0.4 * side)].mean() < 200
    assert "at most" in page_of(corner)
    assert "lower right" in page_of(corner)


def test_accelerations_are_drawn_and_the_large_ones_marked(tmp_path):
    jump = clip(0, slope=0.0)
    jump[5:] = np.round(jump[5:] * 0.9)
    video.write(tmp_path / "jump.mp4", jump, FPS)
    text = page_of(tmp_path / "jump.mp4")
    assert text.count('class="mark clip"') == 4, "the frame before the step and the one after, in both charts"
    assert re.search(r'aria-label="acceleration, stops per frame²: largest 0\.\d+ stops at 0\.(50|62) s"', text)
    video.write(tmp_path / "still.mp4", clip(0, slope=0.0), FPS)
    assert 'class="mark' not in page_of(tmp_path / "still.mp4")


def test_a_long_track_is_thinned_and_keeps_its_spike():
    y = np.zeros(20_000)
    y[13_337] = 1.0
    line = Line(np.arange(len(y)) / 8, y, "clip")
    drawn = line_chart("exposure", [line], least_span=1.0)
    tops = [float(p.split(",")[1]) for p in re.search(r'points="([^"]+)"', drawn)[1].split()]
    assert len(tops) < 800
    assert min(tops) < max(tops) - 80
    assert len(stem_chart("acceleration", [line], least_span=0.1)) < 20_000


def test_a_whisker_beyond_its_axis_ends_in_an_arrow():
    assert "<path" not in whisker(-0.5, -0.4, -0.3, 1.0, "good")
    assert whisker(-1.5, -0.4, 2.3, 1.0, "plain").count("<path") == 2


def test_clips_of_one_scenario_stand_side_by_side_with_their_reference(tmp_path):
    reference = measured(tmp_path, "rendered", 1).clips[0].record.path
    frames, fps, _ = video.read(reference)
    records = []
    for index, language in enumerate(("en", "zh", "en")):
        video.write(tmp_path / f"{index}.mp4", clip(index), FPS)
        facts = {"scenario": "street_lamp", "language": language, "prompt": f"lamp in {language}", "seed": index}
        shown = None if index else (lambda: Reference(frames, fps))
        records.append(ClipRecord(tmp_path / f"{index}.mp4", facts, shown))
    video.write(tmp_path / "alone.mp4", clip(5), FPS)
    records.append(ClipRecord(tmp_path / "alone.mp4", {"prompt": "something else"}))
    evaluation = evaluate_clips(records)
    assert evaluation.scenarios() == {"street_lamp": [0, 1, 2]}
    text = report.render(evaluation, title="scenarios")
    section = text[text.index('<section class="scenario">') : text.index("</section>")]
    assert section.count("<video ") == 4
    assert section.count("data-src") == 0, "the page holds every clip once"
    for words in ("street lamp", "lamp in zh", "rendered", "Chinese, seed 1", "English, seed 2"):
        assert words in section
    for key in re.findall(r'data-of="([^"]+)"', section):
        assert f'<video id="{key}"' in text


def test_the_page_is_bounded_and_says_what_it_leaves_out(tmp_path):
    evaluation = measured(tmp_path, "many", 12)
    whole = report.render(evaluation, title="many")
    one = len(re.search(r"<article.*?</article>", whole, re.S)[0])
    text = report.render(evaluation, title="many", limit=4 * one + one // 2)
    assert text.count("<article") == 4
    assert "8 of 12 clips have no card here" in text
    assert "may take" in text
    rows = text[text.index('id="every"') :].count("<tr>") - 1
    assert rows == 12
    assert "have no card here" not in whole


def test_what_is_kept_of_a_clip_does_not_grow_with_its_length(tmp_path):
    frames = clip(0, slope=0.0)

    def many():
        for index in range(260):
            yield frames[index % len(frames)]

    video.write(tmp_path / "long.mp4", many(), 30)
    result = evaluate_clips([ClipRecord(tmp_path / "long.mp4")]).clips[0]
    assert result.clip.metrics["frames"] == 260
    assert len(result.clip.jpegs) == 9
    assert max(result.clip.curves.flicker_map.shape) <= 96
    text = report.render(evaluate_clips([result.record]), title="long")
    assert f"first {report_media.COPY_FRAMES} of 260 frames" in text
    shown = re.search(r'data-src="data:video/mp4;base64,([^"]+)"', text)[1]
    (tmp_path / "shown.mp4").write_bytes(base64.b64decode(shown))
    assert video.probe(tmp_path / "shown.mp4").frames == report_media.COPY_FRAMES


def test_clips_that_browsers_do_not_play_are_shown_as_copies_that_they_do(tmp_path):
    path = record(
        tmp_path / "hdr.mp4", (0.5, 0.5, 0.5), codec="libx265", pixel_format="yuv420p10le", matrix=BT2020,
        primaries=BT2020, transfer=PQ, ticks=range(5),
    )  # fmt: skip
    text = page_of(path)
    assert "HDR (PQ, BT.2020): converted to linear Rec. 709, 1,000 cd/m² as 1" in text
    shown = re.search(r'data-src="data:video/mp4;base64,([^"]+)"', text)[1]
    (tmp_path / "shown.mp4").write_bytes(base64.b64decode(shown))
    with av.open(str(tmp_path / "shown.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


def test_a_clip_that_flashes_waits_to_be_started(tmp_path):
    evaluation = measured(tmp_path, "one", 1)
    evaluation.clips[0].clip.metrics["flash_rate"] = 4.0
    text = report.render(evaluation, title="flashes")
    assert "data-hold" in text
    assert "flashes: press to play" in text
    evaluation.clips[0].clip.metrics["flash_rate"] = 3.0
    assert "press to play</span>" not in report.render(evaluation, title="flashes")


def test_a_comparison_leads_with_its_verdict_and_shows_both_clips(tmp_path):
    comparison = compare(measured(tmp_path, "ours", flicker=0.005), measured(tmp_path, "theirs", flicker=0.08))
    text = report.render(comparison.clips, title="ours against theirs", comparison=comparison)
    assert text.index("ours is better than theirs") < text.index('class="figures"') < text.index('id="compared"')
    assert text.count("<article") == 9
    assert text.count("<video id=") == 18
    uris = re.findall(r'data-src="(data:video/mp4;base64,[^"]+)"', text)
    assert len(set(uris)) == 18, "a clip and its partner are two clips"
    assert "common flicker falls by" in text


def test_every_picture_has_words_and_every_table_headers(tmp_path, corner):
    comparison = compare(measured(tmp_path, "ours"), measured(tmp_path, "theirs", flicker=0.08))
    text = report.render(comparison.clips, title="all", comparison=comparison) + page_of(corner)
    assert '<html lang="en">' in text
    images, charts, players = (re.findall(rf"<{tag} [^>]*>", text) for tag in ("img", "svg", "video"))
    assert images and all(re.search(r'alt="[^"]{8,}"', tag) for tag in images)
    assert charts and all("aria-label=" in tag or "aria-hidden=" in tag for tag in charts)
    assert players and all("aria-label=" in tag and 'tabindex="0"' in tag for tag in players)
    assert not re.findall(r"<th>", text), "every header says what it heads"
    assert text.count("<table") == text.count("<caption")


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two #rrggbb colours."""
    light = []
    for color in (one, other):
        values = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        light.append(float(linear @ (0.2126, 0.7152, 0.0722)) + 0.05)
    return max(light) / min(light)


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_colours_have_contrast_enough_to_be_read(mode):
    block = re.findall(r":root \{(.*?)\}", STYLE, re.S)[mode]
    colors = dict(re.findall(r"--(\w+): (#\w{6})", block))
    for ground in ("paper", "card"):
        for ink in ("ink", "soft", "good", "bad", "sky", "leaf"):
            assert contrast(colors[ink], colors[ground]) >= 4.5, (ink, ground)
        for shape in ("sun", "edge"):
            assert contrast(colors[shape], colors[ground]) >= 3, (shape, ground)


def console(page: Path, profile: Path) -> str:
    """What a browser without a network writes to its console on a page."""
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0",
        "--virtual-time-budget=2000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    return "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH")
def test_the_page_opens_from_disk_without_a_network_and_without_an_error(tmp_path, corner):
    control = tmp_path / "control.html"
    control.write_text("<script>console.error('seen')</script>")
    if "seen" not in console(control, tmp_path / "profile"):
        pytest.skip("Chromium does not run here")
    page = tmp_path / "page.html"
    comparison = compare(measured(tmp_path, "ours"), measured(tmp_path, "theirs", flicker=0.08))
    page.write_text(report.render(comparison.clips, title="ours", comparison=comparison), encoding="utf-8")
    assert console(page, tmp_path / "profile") == ""
