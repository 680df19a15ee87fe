"""The showcase's captions: which scenes, which signs, which words, and the command that writes them."""

import collections
import dataclasses
import json
import subprocess
import sys

import pytest

from data_pipelines import light_scenes
from data_pipelines.light_scenes import all_captions, plan
from data_pipelines.light_scenes.captions import LANGUAGES, states_color
from tests import forked

LAMP, BLINDS, WATER = light_scenes.SCENARIOS.values()
SMALL = light_scenes.LightScenesConfig(frames=3, height=16, width=16, train=24, validation=24, test=96, supersample=1,
                                       families=light_scenes.ALL)


def by_scenario(prompts):
    found = collections.defaultdict(list)
    for prompt in prompts:
        found[prompt["scenario"]].append(prompt)
    return found


def test_each_scenario_has_eight_clips_half_of_them_in_either_language() -> None:
    prompts = light_scenes.showcase_prompts()
    assert collections.Counter((p["scenario"], p["language"]) for p in prompts) == {
        (scenario, language): 4 for scenario in (LAMP, BLINDS, WATER) for language in LANGUAGES
    }
    assert len({p["seed"] for p in prompts}) == len(prompts) == 24


def test_signs_are_those_that_the_scenarios_name() -> None:
    found = by_scenario(light_scenes.showcase_prompts())
    signs = {
        name: collections.Counter((p["language"], p["exposure_change"], p["sweep"], p["glints"]) for p in prompts)
        for name, prompts in found.items()
    }
    assert signs[LAMP] == {(language, 0, way, 0): 2 for language in LANGUAGES for way in (1, -1)}
    assert signs[BLINDS] == {(language, 1, 1, 0): 4 for language in LANGUAGES}
    assert signs[WATER] == {(language, c, 0, way): 1 for language in LANGUAGES for c in (1, -1) for way in (1, -1)}
    assert all(p["shadow_follows"] == 1 for p in found[LAMP])
    assert not any("shadow_follows" in p for p in found[BLINDS] + found[WATER])


def test_the_color_is_stated_where_the_sentence_says_so_and_there_alone() -> None:
    found = by_scenario(light_scenes.showcase_prompts())
    for prompt in sum(found.values(), []):
        says = any(words in prompt["prompt"] for words in ("blue to warm", "warm to blue", "由冷变暖", "由暖变冷"))
        assert ("color_change" in prompt) == says
        assert not says or prompt["color_change"] == prompt["exposure_change"]
    counts = {name: collections.Counter(p.get("color_change") for p in prompts) for name, prompts in found.items()}
    assert counts == {LAMP: {None: 8}, BLINDS: {None: 4, 1: 4}, WATER: {None: 4, 1: 2, -1: 2}}
    assert not states_color("Night walk, lamp: warm steady light, his shadow runs left.")


def test_wording_is_held_out_varied_and_that_of_the_scene() -> None:
    specs = plan("test", 96, families=light_scenes.ALL)
    seen = {text for spec in plan("train", 24, families=light_scenes.ALL) for language in LANGUAGES
            for text in all_captions(spec, language)}
    for prompts in by_scenario(light_scenes.showcase_prompts()).values():
        assert len({p["scene"] for p in prompts}) in (4, 8)
        assert len({p["prompt"] for p in prompts}) >= 6
        for prompt in prompts:
            spec = specs[prompt["scene"]]
            assert prompt["prompt"] in all_captions(spec, prompt["language"]) and prompt["prompt"] not in seen
            assert (prompt["family"], prompt["variant"]) == (spec.family, spec.variant)


def test_a_data_set_without_the_scenarios_is_refused() -> None:
    with pytest.raises(ValueError, match="no street_lamp, sunrise_room/blinds, water_glitter"):
        light_scenes.showcase_prompts(config=light_scenes.LightScenesConfig())
    with pytest.raises(ValueError, match="too few scenes of street_lamp: expected 4"):
        light_scenes.showcase_prompts(config=dataclasses.replace(SMALL, test=48))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    light_scenes.prepare(root, config=SMALL)
    return root


def launch(folder, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data_pipelines.light_scenes", f"--data_dir={folder}", *options]
    return forked.run(command)


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_command_writes_the_captions_with_their_truth(folder, tmp_path) -> None:
    source = light_scenes.open_split(folder, "test", config=SMALL)
    sizes = [f"--{name}={getattr(SMALL, name)}" for name in ("frames", "height", "width", "validation", "test",
                                                            "supersample")]
    sizes += ["--train=48"]  # prompts are of the test split, whatever the size of the others
    done = launch(folder, f"--prompts={tmp_path / 'deep' / 'a.jsonl'}", "--prompts_of=showcase", *sizes)
    assert done.returncode == 0, done.stderr
    lines = lines_of(tmp_path / "deep" / "a.jsonl")
    assert [{k: v for k, v in line.items() if k != "truth"} for line in lines] == light_scenes.showcase_prompts()
    for line in lines:
        example = source[line["scene"]]
        assert example["family"].decode() == line["family"]
        assert line["truth"]["exposure_slope"] == pytest.approx(float(example["exposure_slope"]))
    done = launch(folder, f"--prompts={tmp_path / 'b.jsonl'}", "--families=all", *sizes)
    assert done.returncode == 0, done.stderr
    assert lines_of(tmp_path / "b.jsonl") == light_scenes.heldout_prompts(folder, 48, config=SMALL)


@pytest.mark.parametrize(("options", "message"), [
    (["--prompts=a.txt"], "--prompts=a.txt: expected a file that ends in .jsonl"),
    (["--prompt_count=32"], "--prompt_count=32 says which captions to write: give --prompts"),
    (["--prompts=a.jsonl", "--prompts_of=showcase"], "light_scenes is not at"),
])
def test_what_cannot_be_obeyed_is_refused_and_nothing_is_written(options, message, tmp_path) -> None:
    done = launch(tmp_path, *options)
    assert done.returncode == 1 and message in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())
