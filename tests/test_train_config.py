"""What the training loop is asked for is possible, or refused with the field's name."""
import pathlib

import pytest

from wanjax import config
from wanjax.train_config import TrainConfig


@pytest.mark.parametrize("bad", [{"expert": "mid"}, {"boundary": 1.0}, {"accumulate": 0}, {"keep": 0},
                                 {"expert": "low", "boundary": 0.0}, {"first_frame": -0.1}, {"batch_timeout": 0.0}])
def test_bad_values_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TrainConfig(**bad)


@pytest.mark.parametrize("bad", [{"profile_steps": 3}, {"profile_from": 3}, {"profile_from": 3, "profile_steps": -1},
                                 {"profile_from": -1, "profile_steps": 3}])
def test_a_profile_needs_a_first_step_and_a_number(bad):
    with pytest.raises(ValueError, match="profile_from = .*, profile_steps = .*: expected the first step"):
        TrainConfig(**bad)


def test_a_profile_lies_within_the_steps_of_every_expert_that_is_trained():
    window = {"steps_high": 100, "steps_low": 50, "profile_from": 96, "profile_steps": 5}
    assert TrainConfig(expert="high", **window).profile_steps == 5
    with pytest.raises(ValueError, match="end at step 100, but steps_low = 50"):
        TrainConfig(expert="both", **window)
    with pytest.raises(ValueError, match="end at step 101, but steps_high = 100"):
        TrainConfig(expert="high", **{**window, "profile_steps": 6})


@pytest.mark.parametrize("path", sorted((pathlib.Path(__file__).parents[1] / "configs").glob("[!_]*.py")),
                         ids=lambda path: path.stem)
def test_every_config_can_be_profiled_and_watched_from_the_command_line(path):
    overrides = {"train.profile_from": 2, "train.profile_steps": 3, "train.batch_timeout": 60.0}
    settings = config.load(path, overrides).train
    assert (settings.profile_from, settings.profile_steps, settings.batch_timeout) == (2, 3, 60.0)
