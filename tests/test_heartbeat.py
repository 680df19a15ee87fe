"""A process that is lost or fails ends the others, by name."""

import dataclasses
import socket
import threading
import time

import jax
import pytest

from tests.fake_store import FakeStore, clusters
from wanjax.cluster import Cluster
from wanjax.heartbeat import FAILED, LOST, Watch

QUICK = {"interval": 0.02, "silence": 0.3}


class Ended:
    """Takes the place of os._exit."""

    def __init__(self):
        self.code, self._happened = None, threading.Event()

    def __call__(self, code):
        self.code = code
        self._happened.set()

    def wait(self):
        assert self._happened.wait(20), "it was never ended"
        return self.code


def test_a_silent_process_ends_the_others_and_is_named(capsys):
    several, ends = clusters(3), [Ended() for _ in range(3)]
    watches = [Watch(c, **QUICK, leave=end) for c, end in zip(several, ends, strict=True)]
    with watches[0], watches[1]:  # process 2 never beats
        assert [ends[0].wait(), ends[1].wait()] == [LOST, LOST]
    said = capsys.readouterr().err
    for i in (0, 1):
        assert (f"process {i} (host h{i}, pid {100 + i}) ends: process 2 (host h2, pid 102): no sign of life for "
                "0.3 s, lost") in said  # fmt: skip


def test_who_beats_or_has_left_is_not_missed():
    ends = [Ended() for _ in range(3)]
    watches = [Watch(c, **QUICK, leave=end) for c, end in zip(clusters(3), ends, strict=True)]
    with watches[0], watches[1]:
        with watches[2]:
            time.sleep(0.5)
        time.sleep(0.6)
    assert [end.code for end in ends] == [None] * 3


def test_a_pause_of_process_0_itself_is_nobody_elses_silence():
    watch = Watch(clusters(2)[0], interval=1.0, silence=2.0)
    beats = [{"wanjax/beats/0": str(n), "wanjax/beats/1": str(n)} for n in (1, 9)]  # long after one another
    assert watch._silent(beats[0]) == watch._silent(beats[1]) == []
    still = {"wanjax/beats/0": "10", "wanjax/beats/1": "9"}
    assert watch._silent(still) == []
    assert watch._silent(still | {"wanjax/beats/0": "11"}) == [1]


def test_one_that_fails_says_so_to_all(capsys):
    ends = [Ended() for _ in range(3)]
    watches = [Watch(c, interval=0.02, silence=0.2, leave=end) for c, end in zip(clusters(3), ends, strict=True)]
    with watches[0], watches[2]:
        with pytest.raises(SystemExit), watches[1]:
            watches[1].fail("error: the disk is full")
        assert [end.wait() for end in ends] == [FAILED] * 3
    said = capsys.readouterr().err
    assert "process 1 (host h1, pid 101): error: the disk is full" in said
    for i in (0, 2):
        assert f"pid {100 + i}) ends: process 1 (host h1, pid 101) ended: error: the disk is full" in said


def test_an_error_that_nobody_caught_is_said_with_its_trace(capsys):
    ends = [Ended(), Ended()]
    watches = [Watch(c, interval=0.02, silence=0.2, leave=end) for c, end in zip(clusters(2), ends, strict=True)]
    with watches[0]:
        with pytest.raises(SystemExit), watches[1]:
            raise KeyError("a bug")
        assert [end.wait() for end in ends] == [FAILED, FAILED]
    assert "KeyError: 'a bug'" in capsys.readouterr().err


def test_the_loss_of_the_store_is_the_loss_of_process_0(capsys):
    class Gone(FakeStore):
        def blocking_key_value_get(self, key, timeout_in_ms):
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: failed to connect")

    end = Ended()
    with Watch(clusters(2, Gone())[1], **QUICK, leave=end):
        assert end.wait() == LOST
    assert "pid 101) ends: process 0 (host h0, pid 100): its coordination service" in capsys.readouterr().err


def test_the_death_of_process_0_is_seen_by_the_end_of_a_connection(capsys):
    end = Ended()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        [_, own] = clusters(2)
        with Watch(dataclasses.replace(own, coordinator=address), **QUICK, leave=end):
            first, _ = server.accept()
            first.close()  # a service that hears nothing for long: it is there when asked again
            second, _ = server.accept()
            time.sleep(0.2)
            assert end.code is None
            server.close()
            second.close()
            assert end.wait() == LOST
    said = capsys.readouterr().err
    assert f"pid 101) ends: process 0 (host h0, pid 100): nothing answers at {address}, lost" in said


def test_a_single_process_has_nothing_to_watch():
    before = threading.active_count()
    with Watch(Cluster()) as watch:
        assert threading.active_count() == before
        with pytest.raises(SystemExit, match="error: as ever"):
            watch.fail("error: as ever")
    with pytest.raises(KeyError), Watch(Cluster()):
        raise KeyError("as ever")
