"""One process, one config per run folder."""
import json
import pathlib
import subprocess
import sys

import pytest

from wanjax import config
from wanjax.workdir import Workdir, WorkdirError

TINY = pathlib.Path(__file__).parents[1] / "configs/light_scenes_tiny.py"


def test_a_second_process_is_refused_and_the_first_is_named(tmp_path):
    experiment = config.load(TINY)
    hold = ("import sys; from wanjax import config; from wanjax.workdir import Workdir\n"
            f"with Workdir({str(tmp_path)!r}, config.load({str(TINY)!r})): print('held', flush=True); sys.stdin.read()")
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(WorkdirError, match=f"in use by process {other.pid}"), Workdir(tmp_path, experiment):
            pass
    finally:
        other.communicate("")
    with Workdir(tmp_path, experiment):  # the lock goes with its process
        pass


def test_no_two_runs_share_a_folder_of_checkpoints_or_of_logs(tmp_path):
    experiment = config.load(TINY)
    with Workdir(tmp_path / "run", experiment, tmp_path / "logs"):
        for run, logs in (("run", "others"), ("other", "logs")):
            with (pytest.raises(WorkdirError, match=f"{run if logs == 'others' else logs}' is in use by process"),
                  Workdir(tmp_path / run, experiment, tmp_path / logs)):  # fmt: skip
                pass
    with Workdir(tmp_path / "run", experiment, tmp_path / "others"), Workdir(tmp_path / "other", experiment):
        pass


def trained(folder):
    """As a run leaves it that has saved a step."""
    (folder / "high/checkpoints/7").mkdir(parents=True)


def test_a_config_may_be_corrected_until_a_step_is_saved(tmp_path):
    for seed in (0, 1):  # the first launch failed, or diverged, before it saved anything
        with Workdir(tmp_path, config.load(TINY, {"seed": seed})):
            pass
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1


def test_another_config_is_refused_field_by_field(tmp_path):
    with Workdir(tmp_path, config.load(TINY)):
        trained(tmp_path)
    with pytest.raises(WorkdirError, match=r"config.seed: 0 there, 1 asked for"):
        Workdir(tmp_path, config.load(TINY, {"seed": 1})).__enter__()
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0
    with Workdir(tmp_path, config.load(TINY)):  # and what was refused holds nothing
        pass


def test_a_run_of_an_older_version_goes_on_with_the_defaults_of_what_is_new(tmp_path):
    older = config.to_dict(config.load(TINY))
    del older["objective"]["shadow"], older["data"]["visibility_cell"]
    for name in ("batch_timeout", "profile_from", "profile_steps"):
        del older["train"][name]
    (tmp_path / "config.json").write_text(json.dumps(older))
    trained(tmp_path)
    with Workdir(tmp_path, config.load(TINY)):
        pass
    with pytest.raises(WorkdirError, match=r"config.objective.shadow.weight: 0.0 there, 0.5 asked for"):
        Workdir(tmp_path, config.load(TINY, {"objective.shadow.weight": 0.5})).__enter__()


def test_what_does_not_change_the_result_may_change(tmp_path):
    trained(tmp_path)
    for every in (10, 20):
        with Workdir(tmp_path, config.load(TINY, {"train.checkpoint_every": every, "mesh.data": every // 10,
                                                  "train.profile_from": every, "train.profile_steps": every,
                                                  "train.batch_timeout": float(every)})):
            pass
    assert json.loads((tmp_path / "config.json").read_text())["train"]["checkpoint_every"] == 20


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="cannot be written"):
        Workdir(tmp_path / "file" / "run", config.load(TINY)).__enter__()
