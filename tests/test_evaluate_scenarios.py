"""Scenarios: sampled clips beside what was rendered for their captions, and what their captions state, scored."""

import json

import pytest
from absl.testing import flagsaver

from data_pipelines import light_scenes
from data_pipelines.light_scenes.builder import LightScenesConfig, example_of
from experiments import evaluate as launcher
from tests.test_evaluate import launch
from wanjax import video

CONFIG = LightScenesConfig.balanced(families=light_scenes.ALL)
LAMP, BLINDS, WATER = light_scenes.SCENARIOS.values()


class Scenes:
    """The test split of all families, rendered when it is asked for."""

    def __init__(self):
        self.specs = light_scenes.plan("test", CONFIG.test, families=light_scenes.ALL)
        self.made = {}

    def __len__(self):
        return len(self.specs)

    def __getitem__(self, index):
        if index not in self.made:
            self.made[index] = example_of(light_scenes.render_clip(self.specs[index]), CONFIG)
        return self.made[index]


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes()


@pytest.fixture(scope="module")
def run(tmp_path_factory, scenes):
    """Two clips of each scenario, rendered and not sampled; the second of each is played backwards."""
    folder = tmp_path_factory.mktemp("run") / "samples"
    prompts = light_scenes.showcase_prompts()
    lines = []
    for index in (0, 1, 8, 11, 16, 17):
        record = prompts[index]
        frames = scenes[record["scene"]]["video"]
        video.write(folder / f"clip_{index}.mp4", frames[::-1] if index in (1, 11, 17) else frames, CONFIG.fps)
        lines.append(json.dumps({"file": f"clip_{index}.mp4", **record}, ensure_ascii=False))
    (folder / "samples.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder.parent


@pytest.fixture(autouse=True)
def parsed_flags(monkeypatch, scenes):
    def opened(folder, split, config):
        if config.families != light_scenes.ALL:
            raise FileNotFoundError("light_scenes is not there")
        return scenes

    monkeypatch.setattr(launcher.light_scenes, "open_split", opened)
    with flagsaver.flagsaver():
        launcher.flags.FLAGS.mark_as_parsed()
        yield


def test_scenarios_are_scored_beside_their_rendered_clips(run, capsys):
    page, numbers = run / "report.html", run / "report.json"
    assert launch(workdir=str(run), references="data", references_families="all", estimator_clips=2,
                  json=str(numbers), report=str(page)) == 0  # fmt: skip
    summary = json.loads(numbers.read_text(encoding="utf-8"))
    assert set(summary["scored_answers"]) == {"exposure_change", "sweep", "color_change", "glints", "shadow_follows"}
    found = {entry["name"]: entry for entry in summary["scenarios"]}
    assert set(found) == {LAMP, BLINDS, WATER}
    counts = {name: {answer: (a["correct"], a["of"]) for answer, a in entry["score"]["answers"].items()}
              for name, entry in found.items()}  # fmt: skip
    assert counts == {
        LAMP: {"exposure_change": (2, 2), "sweep": (1, 2), "shadow_follows": (2, 2)},
        BLINDS: {"exposure_change": (1, 2), "sweep": (1, 2), "color_change": (1, 1)},
        WATER: {"exposure_change": (1, 2), "glints": (1, 2), "color_change": (1, 1)},
    }
    for entry in found.values():
        assert (entry["score"]["correct"], entry["score"]["of"]) == (1, 2)
        assert (entry["rendered"]["correct"], entry["rendered"]["of"]) == (2, 2)
        assert entry["metrics"]["exposure_slope"]["reference_mean"] >= 0
    glints = [clip["metrics"]["glint_rate"] for clip in summary["clips"][4:]]
    assert glints[0] > 0.1 and glints[1] > 0.1, "the second was to run left and is played backwards"
    assert summary["clips"][5]["reference"]["answers"]["glints"] == -1
    said = capsys.readouterr().out
    assert f"{WATER}: 1 of 2 [9-91 %] as captioned, rendered 2 of 2" in said
    assert "  glints: 1 of 2 [9-91 %], rendered 2 of 2" in said

    text = page.read_text(encoding="utf-8")
    sections = text.split('<section class="scenario">')[1:]
    assert len(sections) == 3
    for section, words in zip(sections, ("✓ shadow follows", "✓ turns warmer", "✗ glints run right"), strict=True):
        assert words in section
        assert section.count("rendered</figcaption>") == 2
    assert "glints right" in text and "shadow right" in text


def test_answers_that_were_not_checked_against_controls_are_shown_and_not_scored(run, capsys):
    numbers, page = run / "loose.json", run / "loose.html"
    assert launch(workdir=str(run), json=str(numbers), report=str(page)) == 0
    summary = json.loads(numbers.read_text(encoding="utf-8"))
    assert summary["scored_answers"] == ["exposure_change", "sweep"]
    first = summary["clips"][0]
    assert first["answers"]["shadow_follows"] == 1 and first["unscored"] == {"shadow_follows": 1}
    assert set(first["expected"]) == {"exposure_change", "sweep"}
    assert "shadow follows, said: shadow follows (not scored)" in page.read_text(encoding="utf-8")
    # Of the stored scenes no wrong shadow can be made, so nothing stands against a shadow that follows.
    assert launch(workdir=str(run), references="data", references_families="all", reference_clips=11,
                  json=str(numbers)) == 0  # fmt: skip
    # no sweep is read off water, which never stands still
    assert "sweep" not in summary["clips"][4]["expected"] and "sweep" in summary["clips"][4]["answers"]
    assert "shadow_follows" not in json.loads(numbers.read_text(encoding="utf-8"))["scored_answers"]


def test_a_scene_of_another_family_or_sign_is_refused(run, tmp_path):
    listing = (run / "samples" / "samples.jsonl").read_text(encoding="utf-8")
    (tmp_path / "samples").mkdir()
    for old, new, message in (
        ('"scene": 8}', '"scene": 20}', "its sweep is 1, but -1 in"), ('"scene": 8}', '"scene": 0}', "its family is"),
    ):  # fmt: skip
        (tmp_path / "samples" / "samples.jsonl").write_text(listing.replace(old, new), encoding="utf-8")
        stop = launch(workdir=str(tmp_path), references="data", references_families="all", reference_clips=0)
        assert message in str(stop) and "--references_families" in str(stop)


def test_families_that_are_not_there_are_named_with_what_is(run, tmp_path):
    (tmp_path / "light_scenes" / "64x64x17_all").mkdir(parents=True)
    stop = str(launch(workdir=str(run), references=str(tmp_path)))
    assert "it holds 64x64x17_all" in stop and "'all' for names that end in _all" in stop
    assert "expected different names of" in str(launch(workdir=str(run), references="data", references_families="moon"))


def test_facts_that_cannot_be_answers_are_named(run, tmp_path):
    line = (run / "samples" / "samples.jsonl").read_text(encoding="utf-8").splitlines()[0]
    (tmp_path / "samples").mkdir()
    listing = tmp_path / "samples" / "samples.jsonl"
    for fact, message in (('"shadow_follows": -1', "shadow_follows = -1: expected 0 or 1"),
                          ('"glints": 2', "glints = 2: expected -1, 0 or 1")):  # fmt: skip
        name = fact.split(":")[0]
        changed = json.loads(line) | json.loads("{" + fact + "}")
        assert name.strip('"') in changed
        listing.write_text(json.dumps(changed, ensure_ascii=False), encoding="utf-8")
        assert f"samples.jsonl:1: {message}" in str(launch(workdir=str(tmp_path)))
