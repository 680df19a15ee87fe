"""No step is missing or twice in the log, whatever happened to the process that wrote it."""
import contextlib
import json
import resource

import numpy as np
import PIL.Image
import pytest

from wanjax.run_log import RunLog, RunLogError


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


FIGURES = {"steps": 2, "tokens_per_second": 1234.5, "mfu": 0.41}


def test_what_a_clock_says_has_a_file_of_its_own_and_is_cut_likewise(tmp_path):
    with RunLog(tmp_path, name="x", steps=10, log_every=2, progress=False) as log:
        log.cut(0)
        for step in (2, 4, 6):
            log.throughput(step, FIGURES)
        log.step(7, {"loss": 1.0})
    with log.throughput_path.open("a") as f:
        f.write('{"step": 8, "ste')
    with RunLog(tmp_path, name="x", steps=10, log_every=2, progress=False) as log:
        log.cut(4)
        log.throughput(5, {"checkpoint_stall_seconds": 0.25})
    lines = [json.loads(line) for line in log.throughput_path.read_text().splitlines()]
    assert lines == [{"step": 2, **FIGURES}, {"step": 4, **FIGURES}, {"step": 5, "checkpoint_stall_seconds": 0.25}]
    assert log.path.read_text() == ""
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    for name in (b"throughput/tokens_per_second", b"throughput/mfu", b"throughput/checkpoint_stall_seconds"):
        assert name in events


def test_the_bar_shows_tokens_per_second_and_mfu_beside_the_loss(tmp_path, capsys):
    with RunLog(tmp_path, name="x", steps=10, log_every=2) as log:
        log.cut(0)
        log.throughput(1, FIGURES)
        log.step(2, {"loss": 0.5})
    shown = capsys.readouterr().err
    for words in ("loss=0.5000", "tokens/s=1.23k", "MFU=41.0%"):
        assert words in shown


def test_writing_before_opening_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="cut"):
        RunLog(tmp_path, name="x", steps=1, log_every=1, progress=False).validation(1, {"validation/velocity": 1.0})


@contextlib.contextmanager
def largest_file(size):
    """No file may grow past ``size`` bytes: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_more_is_said_with_the_remedy(tmp_path):
    with (pytest.raises(RunLogError, match=f"{tmp_path} cannot be written .*Free disk space and launch again"),
          largest_file(2000), RunLog(tmp_path, name="x", steps=1000, log_every=1, progress=False) as log):
        log.cut(0)
        for step in range(1, 1000):
            log.step(step, {"loss": 0.5})
    assert steps(write(tmp_path, 20, 22)) == list(range(1, 23))


def test_an_error_on_its_way_is_not_hidden_by_one_of_closing(tmp_path):
    with (pytest.raises(KeyError, match="the cause"), largest_file(2000),
          RunLog(tmp_path, name="x", steps=1000, log_every=1, progress=False) as log):
        log.cut(0)
        with contextlib.suppress(RunLogError):
            for step in range(1, 1000):
                log.step(step, {"loss": 0.5})
        raise KeyError("the cause")
