"""Clips of any kind, from the command: measured or refused by name, the others go on, and the JSON says it all."""

import json
from pathlib import Path

import numpy as np
import pytest
from absl.testing import flagsaver

from experiments import evaluate as launcher
from tests.test_compare import clip
from tests.test_video_kinds import BT2020, HLG, record, turned
from wanjax import video
from wanjax.light.metrics import UNITS

GREY = (0.5, 0.5, 0.5)


@pytest.fixture(autouse=True)
def parsed_flags():
    with flagsaver.flagsaver():
        launcher.flags.FLAGS.mark_as_parsed()
        yield


def launch(**values) -> int:
    with flagsaver.flagsaver(**values), pytest.raises(SystemExit) as stop:
        launcher.main(["evaluate"])
    return stop.value.code


@pytest.fixture
def mixed(tmp_path) -> Path:
    """One clip of each kind."""
    folder = tmp_path / "clips"
    video.write(folder / "plain.mp4", clip(0), 8)
    video.write(folder / "one.mp4", clip(1)[:1], 8)
    video.write(folder / "portrait.mp4", clip(2)[:, :, 4:28], 8)
    video.write(folder / "turned.mp4", clip(3)[:, 4:28], 8)
    turned(folder / "turned.mp4")
    record(folder / "ten.mp4", GREY, pixel_format="yuv420p10le", ticks=range(5))
    tags = dict(matrix=BT2020, primaries=BT2020, transfer=HLG)
    record(folder / "hlg.mp4", GREY, codec="libx265", pixel_format="yuv420p10le", ticks=range(5), **tags)
    record(folder / "mild.mp4", GREY, ticks=(0, 1, 2.1, 3, 4))
    record(folder / "uneven.mp4", GREY, ticks=(0, 1, 2, 6, 7))
    record(folder / "log.mp4", GREY, transfer=9)
    (folder / "cut.mp4").write_bytes((folder / "plain.mp4").read_bytes()[:-200])
    (folder / "empty.mp4").write_bytes(b"")
    return folder


def test_every_kind_is_measured_or_refused_by_name_and_counted(mixed, tmp_path, capsys):
    numbers, page = tmp_path / "a.json", tmp_path / "a.html"
    assert launch(videos=str(mixed / "*"), json=str(numbers), report=str(page)) == 1
    summary = json.loads(numbers.read_text())
    notes = {Path(c["file"]).stem: " ".join(c["notes"]) for c in summary["clips"]}
    assert set(notes) == {"plain", "one", "portrait", "turned", "ten", "hlg", "mild"}
    assert notes["plain"] == notes["portrait"] == ""
    assert "1 frame: flicker needs 3" in notes["one"]
    assert "turned by 270°" in notes["turned"]
    assert "10 bits per sample" in notes["ten"]
    assert "HDR (HLG, BT.2020)" in notes["hlg"]
    assert "spacing of frames varies" in notes["mild"]
    sizes = {Path(c["file"]).stem: (c["height"], c["width"]) for c in summary["clips"]}
    assert sizes["portrait"] == sizes["turned"] == (32, 24)
    refused = {Path(f["file"]).stem: f["error"] for f in summary["unreadable"]}
    assert set(refused) == {"uneven", "log", "cut", "empty"}
    assert "variable frame rate: frame 3 comes 400 ms after" in refused["uneven"]
    assert "constant rate" in refused["uneven"]
    assert (summary["clips_measured"], summary["clips_refused"]) == (7, 4)
    assert summary["metrics"]["global_flicker"]["clips"] == 6, "a single frame has no flicker to average"
    out = capsys.readouterr()
    assert "error: 4 of 11 clips could not be measured" in out.err
    text = page.read_text(encoding="utf-8")
    assert "Not measured: 4 of 11 files" in text
    assert text.count("<article") == 7


def test_a_still_grey_of_ten_bits_or_hdr_neither_flickers_nor_drifts(mixed, tmp_path):
    launch(videos=str(mixed / "[th][el][ng].mp4"), json=str(tmp_path / "a.json"))
    clips = json.loads((tmp_path / "a.json").read_text())["clips"]
    assert len(clips) == 2
    for one in clips:
        assert one["metrics"]["global_flicker"] < 1e-4
        assert abs(one["metrics"]["exposure_slope"]) < 1e-3
        assert one["stream"]["bits"] == 10


def test_ten_bits_show_a_ramp_that_eight_cannot(tmp_path):
    for name, format_ in (("ten", "yuv420p10le"), ("eight", "yuv420p")):
        for step in range(2):
            level = (0.5 + step / 876,) * 3
            record(tmp_path / f"{name}{step}.mp4", level, pixel_format=format_, ticks=range(3))
    launch(videos=str(tmp_path / "*.mp4"), json=str(tmp_path / "a.json"))
    level = {
        Path(c["file"]).stem: np.mean(c["curves"]["log_luminance"])
        for c in json.loads((tmp_path / "a.json").read_text())["clips"]
    }
    assert level["ten1"] > level["ten0"]
    assert level["eight1"] == level["eight0"]


def test_facts_that_make_no_sense_are_refused_for_that_file_alone(tmp_path):
    video.write(tmp_path / "a.mp4", clip(0), 8, {"exposure_change": "up", "sweep": 0})
    video.write(tmp_path / "b.mp4", clip(0), 8, {"truth": 5})
    video.write(tmp_path / "c.mp4", clip(0), 8, {"truth": {"exposure_slope": 0.8}})
    assert launch(videos=str(tmp_path / "*.mp4"), json=str(tmp_path / "a.json")) == 1
    summary = json.loads((tmp_path / "a.json").read_text())
    first, second = (file["error"] for file in summary["unreadable"])
    assert "a.mp4: its fact exposure_change = 'up': expected -1, 0 or 1" in first
    assert "b.mp4: its fact truth = 5: expected an object" in second
    assert summary["clips"][0]["metrics"]["exposure_slope_error"] < 0.05


def test_the_json_has_the_keys_that_the_docs_list(tmp_path):
    for folder, flicker in (("ours", 0.0), ("theirs", 0.05)):
        for index in range(3):
            facts = {"prompt": f"p{index}", "seed": index, "scenario": "wall"}
            video.write(tmp_path / folder / f"{index}.mp4", clip(index, flicker=flicker), 8, facts)
    numbers = tmp_path / "a.json"
    assert launch(videos=str(tmp_path / "ours/*.mp4"), against=str(tmp_path / "theirs/*.mp4"), json=str(numbers)) == 0
    summary = json.loads(numbers.read_text())
    documented = (Path(__file__).parents[1] / "docs" / "evaluate.md").read_text(encoding="utf-8")
    first = summary["clips"][0]
    for part in (summary, first, first["curves"], first["stream"], first["flicker_hotspot"], summary["comparison"],
                 summary["comparison"]["verdict"], summary["comparison"]["path"],
                 summary["comparison"]["metrics"]["global_flicker"], summary["metrics"]["global_flicker"],
                 summary["scenarios"][0]):  # fmt: skip
        for key in part:
            assert f"`{key}`" in documented, f"docs/evaluate.md does not explain {key}"
    assert summary["schema"] == 2
    assert first["metrics"].keys() <= UNITS.keys()
    entry = summary["metrics"]["global_flicker"]
    assert entry["interval_95"][0] <= entry["mean"] <= entry["interval_95"][1]
    assert (entry["clips"], entry["unit"]) == (3, "stops")
    assert [(s["name"], s["clips"], s["score"]) for s in summary["scenarios"]] == [("wall", [0, 1, 2], None)]
    assert len(first["curves"]["acceleration"]) == len(first["curves"]["seconds"]) == 9
    comparison = summary["comparison"]
    assert comparison["paired_by"] == "prompt and seed"
    assert comparison["verdict"]["outcome"] == "undecided"
    assert comparison["against"]["clips_measured"] == 3


def test_two_runs_are_compared_and_flags_that_would_do_nothing_are_refused(tmp_path, capsys):
    for run, flicker in (("one", 0.0), ("two", 0.06)):
        lines = []
        for index in range(2):
            video.write(tmp_path / run / "samples" / f"clip_{index}.mp4", clip(index, flicker=flicker), 8)
            lines.append(json.dumps({"file": f"clip_{index}.mp4", "prompt": "a wall", "seed": index}))
        (tmp_path / run / "samples" / "samples.jsonl").write_text("\n".join(lines))
    assert launch(workdir=str(tmp_path / "one"), against=str(tmp_path / "two")) == 0
    out = capsys.readouterr().out
    assert "pairs: 2 by prompt and seed" in out
    assert "Undecided: 2 pairs of clips cannot tell" in out
    assert "give a glob such as" in str(launch(workdir=str(tmp_path / "one"), against=str(tmp_path)))
    assert "--against /nowhere/*.mp4: no file" in str(launch(workdir=str(tmp_path / "one"), against="/nowhere/*.mp4"))
    launcher.flags.FLAGS["pair_by"].present = 1
    refused = pytest.raises(launcher.app.UsageError, match="--pair_by says how to compare")
    with flagsaver.flagsaver(workdir="one"), refused:
        launcher.main(["evaluate"])
