"""A batch that does not come is named while it is waited for."""
import threading
import time

import pytest

from wanjax.input_watch import InputWatch


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_stall_is_said_while_it_lasts_again_and_when_it_is_over(caplog):
    with InputWatch("high expert", timeout=0.1) as watch, watch.batch(7):
        until(lambda: len(caplog.records) == 2)
    assert len(caplog.records) == 3
    for record in caplog.records[:2]:
        assert "high expert: the input pipeline is stalled: the batch of step 7" in record.getMessage()
        assert "config.train.batch_timeout = 0.1" in record.getMessage()
    assert "the batch of step 7 came after" in caplog.records[2].getMessage()


def test_many_short_waits_are_no_stall(caplog):
    with InputWatch("high expert", timeout=1.0) as watch:
        for step in range(60):
            with watch.batch(step):
                time.sleep(0.02)
    assert not caplog.records


def test_an_error_of_the_pipeline_comes_through_and_ends_the_thread():
    with pytest.raises(OSError, match="gone"), InputWatch("high expert", timeout=0.1) as watch, watch.batch(1):
        raise OSError("gone")
    assert "input watch" not in {thread.name for thread in threading.enumerate()}
