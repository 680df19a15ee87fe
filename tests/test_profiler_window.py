"""The profiler records the steps that were asked for, whatever launch they fall into."""
import jax
import pytest

from tests.test_train import Batches, lines, run
from wanjax import train


def recorded(folder):
    """Steps in the recordings under a folder, one set per recording."""
    found = []
    for file in sorted((folder / "profile").rglob("*.xplane.pb")):
        events = (event for plane in jax.profiler.ProfileData.from_file(str(file)).planes for line in plane.lines
                  for event in line.events if event.name == "train")
        found.append({int(dict(event.stats)["step_num"]) for event in events})
    return found


def test_the_steps_asked_for_are_recorded_and_the_run_is_the_same(tmp_path):
    run(tmp_path / "with", steps=8, every=8, profile_from=4, profile_steps=3)
    (steps,) = recorded(tmp_path / "with")
    assert steps >= {4, 5, 6} and not steps & {1, 2, 3, 8}
    run(tmp_path / "without", steps=8, every=8)
    assert lines(tmp_path / "with") == lines(tmp_path / "without")
    assert not (tmp_path / "without/profile").exists()


def test_a_stop_closes_the_recording_and_the_next_launch_records_the_rest(tmp_path):
    window = dict(steps=8, every=8, profile_from=4, profile_steps=3)
    with pytest.raises(train.Stopped, match="after step 5"):
        run(tmp_path, batches=Batches(stop_at=5), **window)
    assert [steps & {4, 5, 6} for steps in recorded(tmp_path)] == [{4, 5}]
    run(tmp_path, **window)
    assert [steps & {4, 5, 6} for steps in recorded(tmp_path)] == [{4, 5}, {6}]


def test_an_error_closes_the_recording(tmp_path):
    with pytest.raises(train.Diverged):
        run(tmp_path, steps=8, batches=Batches(poison_at=5), profile_from=4, profile_steps=3)
    assert len(recorded(tmp_path)) == 1
    with jax.profiler.trace(str(tmp_path / "another")):  # refused while one is open
        pass
