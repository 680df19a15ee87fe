"""Scores, the control, and the rule that an estimator proves itself before it scores."""

from typing import Any

import pytest

from data_pipelines.light_scenes import rendered_checks
from wanjax.clip_records import OPTIONAL_ANSWERS
from wanjax.evaluate import ClipResult
from wanjax.scoring import (
    check_estimator,
    expected_answers,
    kind_of,
    score,
    scored_answers,
    shuffled_control,
    stated_answers,
)

BOTH = {"exposure_change": 1, "sweep": -1}


def result(read: dict[str, int], expected: dict[str, int] | None) -> ClipResult:
    return ClipResult(None, {}, None, None, read, expected)


def check(of: int, right: int, *, tried: int = 100, taken: int = 0) -> dict[str, dict[str, Any]]:
    """A check of ``glints`` in two families that share the clips."""
    half = {"of": of // 2, "right": right // 2, "controls": {"played backwards": {"of": tried, "right": taken}}}
    rest = {"of": of - of // 2, "right": right - right // 2, "controls": {}}
    return {"sea": {"clips": of, "answers": {"glints": half}}, "lake": {"answers": {"glints": rest}}, "land": {}}


def test_an_answer_is_scored_from_95_percent_on_and_if_controls_do_not_deceive_it():
    assert scored_answers(check(100, 95)) == {"glints"}
    assert scored_answers(check(100, 94)) == set()
    assert scored_answers(check(100, 100, taken=5)) == {"glints"}
    assert scored_answers(check(100, 100, taken=6)) == set()


def test_what_was_not_checked_is_not_scored():
    assert scored_answers(None) == scored_answers({"land": {"clips": 8, "forward": 8, "backward": 0}}) == set()
    unopposed = check(100, 100)
    unopposed["sea"]["answers"]["glints"]["controls"] = {}
    assert scored_answers(unopposed) == set(), "an estimator that always says yes would pass"


def test_a_control_that_deceives_is_not_hidden_by_another():
    checked = check(100, 100, tried=1000)
    checked["lake"]["answers"]["glints"]["controls"] = {"another": {"of": 10, "right": 5}}
    assert scored_answers(checked) == set()


def test_the_score_counts_what_is_stated_and_nothing_else():
    clips = [
        result({**BOTH}, {**BOTH}),
        result({**BOTH, "glints": 1}, {**BOTH, "glints": 1}),
        result({**BOTH, "glints": 1}, {**BOTH, "glints": -1}),
        result({**BOTH, "color_change": 1}, None),
        result({"exposure_change": 0, "sweep": -1, "color_change": 1}, {**BOTH, "color_change": 1}),
    ]
    found = score(clips)
    assert (found["correct"], found["of"], found["exposure_change"], found["sweep"]) == (2, 4, 3, 4)
    counts = {name: (entry["correct"], entry["of"]) for name, entry in found["answers"].items()}
    assert counts == {"exposure_change": (3, 4), "sweep": (4, 4), "glints": (1, 2), "color_change": (1, 1)}
    low, high = found["answers"]["glints"]["interval_95"]
    assert low < 0.1 < 0.9 < high
    assert score([clips[3]]) == {"correct": 0, "of": 0, "exposure_change": 0, "sweep": 0}


def test_the_control_does_not_ask_for_optional_answers():
    clips = [result({**said}, said) for said in (BOTH | {"glints": 1}, {"exposure_change": -1, "sweep": 1})]
    assert shuffled_control(clips) == {"correct": 0, "of": 2}


def test_the_sweep_of_water_does_not_count():
    assert expected_answers({"exposure_change": 1}) is None
    assert expected_answers({**BOTH, "glints": 0}) == BOTH
    assert expected_answers({"exposure_change": 1, "sweep": 0, "glints": -1}) == {"exposure_change": 1}
    wet = result({"exposure_change": 1, "sweep": 1}, {"exposure_change": 1})
    found = score([wet, result({**BOTH}, {**BOTH})])
    assert (found["correct"], found["exposure_change"], found["sweep"]) == (2, 2, 1)
    assert "sweep" not in score([wet])["answers"]
    assert shuffled_control([wet, wet]) == {"correct": 0, "of": 0}


def test_zero_states_nothing_but_a_color_that_stays_when_it_is_checked():
    facts = {"color_change": 0, "glints": 0, "shadow_follows": 0}
    assert stated_answers(facts) == {}
    assert stated_answers(facts, steady=True) == {"color_change": 0}
    assert stated_answers({"glints": -1, "sweep": 1}) == {"glints": -1}
    facts = ({}, {"family": "a"}, {"family": "a", "variant": ""}, {"family": "a", "variant": "b"})
    assert [kind_of(f) for f in facts] == ["", "a", "a", "a/b"]


@pytest.fixture(scope="module")
def checked():
    return check_estimator(rendered_checks(("street_lamp", "water_glitter", "sunrise_room/blinds"), 4))


def test_on_rendered_held_out_clips_every_answer_is_right(checked):
    for family in checked.values():
        assert (family["clips"], family["forward"], family["backward"]) == (4, 4, 0)
    answers = {(kind, name): entry for kind, family in checked.items() for name, entry in family["answers"].items()}
    assert set(answers) == {
        ("street_lamp", "color_change"), ("street_lamp", "shadow_follows"), ("water_glitter", "color_change"),
        ("water_glitter", "glints"), ("sunrise_room/blinds", "color_change"),
    }  # fmt: skip
    assert all(entry["right"] == entry["of"] == 4 for entry in answers.values())
    assert scored_answers(checked) == set(OPTIONAL_ANSWERS)


def test_no_control_is_taken_for_right(checked):
    controls = {(name, control): counted for family in checked.values() for name, entry in family["answers"].items()
                for control, counted in entry["controls"].items()}  # fmt: skip
    assert len(controls) == 9, "seven wrong shadows; glints and color played backwards"
    assert all(counted == {"of": 4, "right": 0} for counted in controls.values())
