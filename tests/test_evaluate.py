"""Evaluation: scores, the control, the page, and what happens to broken files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl.testing import flagsaver

from experiments import evaluate as launcher
from tests import forked
from wanjax import evaluate, report, video

REAL = Path(__file__).parents[2] / "shared" / "clips"
FPS = 8.0


def patch_of_light(exposure_change: int, sweep: int, frames: int = 9) -> np.ndarray:
    """[T, 32, 32, 3] uint8: a bright patch slides over a plain wall while all of it brightens or darkens."""
    out = []
    for t in range(frames):
        picture = np.full((32, 32, 3), 60.0)
        left = 12 + round(sweep * (t - frames // 2))
        picture[8:24, left : left + 6] = 140
        out.append(picture * 1.12 ** (exposure_change * (t - frames // 2)))
    return np.round(np.clip(out, 0, 255)).astype(np.uint8)


CELLS = [(1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (0, 0), (0, 0)]


@pytest.fixture
def workdir(tmp_path) -> Path:
    """A run whose samples follow their captions, but for the second, which plays backwards."""
    folder = tmp_path / "run" / "samples"
    lines = []
    for index, (change, sweep) in enumerate(CELLS):
        frames = patch_of_light(change, sweep)
        video.write(folder / f"clip_{index}.mp4", frames[::-1] if index == 1 else frames, FPS)
        facts = {"file": f"clip_{index}.mp4", "prompt": f"<{index}> 光 moves", "language": ("en", "zh")[index % 2]}
        facts |= {"family": "sunrise_room" if change else "sundial", "exposure_change": change, "sweep": sweep}
        facts |= {"scene": index, "seed": index, "truth": {"exposure_slope": 1.2 * change, "sweep_rate": 0.2 * sweep}}
        lines.append(json.dumps(facts, ensure_ascii=False))
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder.parent


@pytest.fixture
def rendered(monkeypatch) -> None:
    """Stands in for the data set of rendered scenes."""
    clips = [
        {"video": patch_of_light(c, s), "fps": FPS, "exposure_change": c, "sweep": s}
        | {"family": b"sunrise_room" if c else b"sundial"}
        for c, s in CELLS
    ]
    monkeypatch.setattr(launcher.light_scenes, "open_split", lambda folder, split, config: clips)


def launch(**values) -> int:
    with flagsaver.flagsaver(**values), pytest.raises(SystemExit) as stop:
        launcher.main(["evaluate"])
    return stop.value.code


@pytest.fixture(autouse=True)
def parsed_flags():
    with flagsaver.flagsaver():
        launcher.flags.FLAGS.mark_as_parsed()
        yield


def test_a_workdir_is_scored_against_its_captions_and_shown(workdir, rendered, capsys):
    page, numbers = workdir / "report.html", workdir / "deep" / "report.json"
    assert launch(workdir=str(workdir), references="data", json=str(numbers), report=str(page)) == 0
    summary = json.loads(numbers.read_text())
    assert (summary["score"]["correct"], summary["score"]["of"]) == (7, 8)
    assert summary["shuffled_captions"]["correct"] <= 1
    assert summary["shuffled_captions"]["of"] == 8
    assert summary["estimator"]["sunrise_room"] == {"clips": 4, "forward": 4, "backward": 0}
    assert summary["estimator"]["sundial"] == {"clips": 4, "forward": 4, "backward": 2}
    assert [c["correct"] for c in summary["clips"]] == [True, False] + [True] * 6
    assert summary["clips"][0]["metrics"]["sweep_rate_error"] < 0.1
    assert summary["families"]["sundial"]["score"]["of"] == 4
    assert summary["languages"]["zh"]["correct"] == 3
    assert "captions followed: 7 of 8" in capsys.readouterr().out

    text = page.read_text(encoding="utf-8")
    assert text.count("<video ") == 16, "every clip beside its rendered reference"
    assert text.count('src="data:video/mp4;base64,') == 16
    assert "&lt;1&gt; 光 moves" in text
    assert "7 of 8" in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text), "nothing is fetched from elsewhere"
    assert not re.findall(r"https?://", text)
    assert not list(workdir.rglob("*.part"))


def test_loose_clips_are_measured_without_a_score(workdir, capsys):
    page = workdir / "loose.html"
    assert launch(videos=str(workdir / "**" / "clip_[0-3].mp4"), json=str(workdir / "a.json"), report=str(page)) == 0
    summary = json.loads((workdir / "a.json").read_text())
    assert summary["score"] is None
    assert summary["clips_measured"] == 4
    assert "exposure_slope_error" not in summary["metrics"]
    assert page.read_text().count("<article") == 4


def test_a_damaged_clip_is_named_the_others_go_on_and_the_exit_code_says_so(workdir, capsys):
    clip = workdir / "samples" / "clip_3.mp4"
    clip.write_bytes(clip.read_bytes()[:-300])
    (workdir / "samples" / "clip_4.mp4").unlink()
    page = workdir / "report.html"
    assert launch(workdir=str(workdir), json=str(workdir / "a.json"), report=str(page)) == 1
    summary = json.loads((workdir / "a.json").read_text())
    assert summary["clips_measured"] == 6
    assert [Path(f["file"]).name for f in summary["unreadable"]] == ["clip_3.mp4", "clip_4.mp4"]
    assert "clip_3.mp4: cut short" in capsys.readouterr().err
    assert "clip_4.mp4: no such video file" in page.read_text()


def test_nothing_measurable_still_gives_a_page(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    assert launch(videos=str(tmp_path / "*.mp4"), report=str(tmp_path / "r.html")) == 1
    assert "No clip could be measured" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"videos": "/nowhere/*.mp4"}, "no file matches"),
        ({"videos": str(Path(__file__).parent)}, "a folder; give a glob"),
        ({"workdir": "/nowhere"}, "samples.jsonl: no such file"),
    ],
)
def test_what_is_missing_is_named(values, message):
    assert message in str(launch(**values))


def test_bad_lines_of_the_listing_are_named(workdir):
    listing = workdir / "samples" / "samples.jsonl"
    for line, message in [
        ("{", "samples.jsonl:9: not JSON"),
        ('{"prompt": "x"}', 'samples.jsonl:9: expected an object with a "file"'),
        ('{"file": "a.mp4", "sweep": 2}', "samples.jsonl:9: sweep = 2"),
    ]:
        good = listing.read_text(encoding="utf-8").splitlines()[:8]
        listing.write_text("\n".join([*good, line]), encoding="utf-8")
        assert message in str(launch(workdir=str(workdir)))


def test_a_scene_that_the_references_lack_is_refused(workdir, rendered):
    listing = workdir / "samples" / "samples.jsonl"
    listing.write_text(listing.read_text().replace('"scene": 7', '"scene": 700'))
    assert "scene 700" in str(launch(workdir=str(workdir), references="data"))


def test_the_control_deals_every_caption_once_and_none_that_shares_an_answer():
    def result(change: int, sweep: int) -> evaluate.ClipResult:
        said = {"exposure_change": change, "sweep": sweep}
        return evaluate.ClipResult(None, {}, None, None, dict(said), said)

    balanced = [result(c, s) for c, s in CELLS]
    assert evaluate.shuffled_control(balanced) == {"correct": 0, "of": 8}
    assert evaluate.shuffled_control([result(1, 1)] * 3) == {"correct": 0, "of": 0}
    contrary = [
        evaluate.ClipResult(
            None, {}, None, None, {"exposure_change": -1, "sweep": -1}, {"exposure_change": 1, "sweep": 1}
        ),
        evaluate.ClipResult(
            None, {}, None, None, {"exposure_change": 1, "sweep": 1}, {"exposure_change": -1, "sweep": -1}
        ),
    ]
    assert evaluate.shuffled_control(contrary) == {"correct": 2, "of": 2}


def test_text_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "folder" / "a.json"
    evaluate.write_text(target, "one")
    target.chmod(0o644)
    with pytest.raises(UnicodeEncodeError):
        evaluate.write_text(target, "half \ud800")
    assert target.read_text() == "one"
    assert [p.name for p in target.parent.iterdir()] == ["a.json"]


def test_a_contact_sheet_shows_the_clips_and_what_they_should_do(tmp_path):
    for name, (change, sweep) in {"a": (1, 1), "b": (-1, -1)}.items():
        video.write(tmp_path / f"{name}.mp4", patch_of_light(change, sweep), FPS)
    evaluation = evaluate.evaluate_clips(evaluate.records_of_videos(str(tmp_path / "*.mp4")))
    sheet = report.contact_sheet(evaluation, across=2)
    height, width = evaluation.clips[0].clip.size
    assert sheet.shape == (96 + 22 + 8, 2 * (5 * round(96 * width / height) + 4 * 3 + 16), 3)
    first, second = np.split(sheet[22:118].astype(int), 2, axis=1)
    assert np.abs(first - second).mean() > 1
    with pytest.raises(ValueError, match="no clip was measured"):
        report.contact_sheet(evaluate.Evaluation([], []))


def test_a_page_of_one_frame_clips_renders(tmp_path):
    video.write(tmp_path / "one.mp4", patch_of_light(0, 0, 1), FPS)
    evaluation = evaluate.evaluate_clips(evaluate.records_of_videos(str(tmp_path / "one.mp4")))
    assert "<circle" in report.render(evaluation, title="one")


def test_the_launcher_runs_from_the_command_line(tmp_path):
    video.write(tmp_path / "a.mp4", patch_of_light(1, 1), FPS, {"prompt": "sunrise"})
    command = [sys.executable, "-m", "experiments.evaluate", "--videos", str(tmp_path / "*.mp4")]
    done = subprocess.run([*command, "--report", str(tmp_path / "r.html")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "clips measured: 1" in done.stdout
    assert "sunrise" in (tmp_path / "r.html").read_text()
    refused = forked.run([sys.executable, "-m", "experiments.evaluate"])
    assert refused.returncode != 0
    assert "either --videos GLOB or --workdir DIR" in refused.stderr + refused.stdout


@pytest.mark.skipif(not REAL.exists(), reason="../shared/clips is absent")
def test_real_clips_are_measured_and_the_broken_one_named(tmp_path):
    assert launch(videos=str(REAL / "broken" / "*.mo*"), json=str(tmp_path / "a.json")) == 0
    assert launch(videos=str(REAL / "broken" / "corrupted.mp4")) == 1
    assert json.loads((tmp_path / "a.json").read_text())["clips_measured"] == 2
