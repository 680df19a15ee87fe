"""No step is missing or twice in the log, whatever happened to the process that wrote it."""
import json

import numpy as np
import PIL.Image
import pytest

from wanjax.run_log import RunLog


def steps(log):
    return [json.loads(line)["step"] for line in log.path.read_text().splitlines()]


def write(folder, start, stop):
    log = RunLog(folder, name="x", steps=10, log_every=2, progress=False)
    log.cut(start)
    for step in range(start + 1, stop + 1):
        log.step(step, {"loss": 1.0 / step})
    log.close()
    return log


def test_log_is_cut_back_to_the_restored_step(tmp_path):
    write(tmp_path, 0, 7)
    log = write(tmp_path, 4, 10)
    assert steps(log) == list(range(1, 11))


def test_a_line_torn_by_a_crash_is_dropped(tmp_path):
    log = write(tmp_path, 0, 5)
    with log.path.open("a") as f:
        f.write('{"step": 6, "lo')
    assert steps(write(tmp_path, 5, 6)) == [1, 2, 3, 4, 5, 6]


def test_validation_and_images_are_kept(tmp_path):
    log = RunLog(tmp_path, name="x", steps=10, log_every=2, progress=False)
    log.cut(0)
    log.validation(3, {"validation/velocity": 0.5})
    log.image(3, np.full((4, 6, 3), 7, np.uint8))
    log.close()
    assert json.loads(log.path.read_text()) == {"step": 3, "validation/velocity": 0.5}
    assert np.asarray(PIL.Image.open(tmp_path / "preview/step_0000003.png")).shape == (4, 6, 3)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_writing_before_opening_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="cut"):
        RunLog(tmp_path, name="x", steps=1, log_every=1, progress=False).validation(1, {"validation/velocity": 1.0})
