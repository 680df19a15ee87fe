"""A request to stop is obeyed after a step, the same one by all processes."""

import os
import signal
import threading

from wanjax import stop
from wanjax.stop import StopRequests


def test_a_signal_asks_and_does_nothing_else():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for number in (signal.SIGTERM, signal.SIGINT):
        requests = StopRequests()
        with requests.listening():
            assert not requests()
            os.kill(os.getpid(), number)
            assert requests() and requests()
        assert requests()  # for what would come next
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_among_several_processes_the_coordination_service_has_the_word(monkeypatch):
    asked, passed_on, requests = [], [], StopRequests()
    monkeypatch.setattr(stop.jax, "process_count", lambda: 2)
    monkeypatch.setattr(stop.multihost_utils, "reached_preemption_sync_point",
                        lambda step: asked.append(step) or step > 3)  # fmt: skip
    old = signal.signal(signal.SIGTERM, lambda *_: passed_on.append("SIGTERM"))  # stands for the service's own
    try:
        with requests.listening():
            assert [requests(), requests()] == [False, False]
        with requests.listening():  # another expert: numbers go on, or a request between the two would be long past
            assert [requests(), requests()] == [False, True]
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, old)
    assert asked == [1, 2, 3, 4] and passed_on == ["SIGTERM"] * 2


def test_a_thread_gets_no_signals_and_never_stops():
    found, requests = [], StopRequests()

    def run():
        with requests.listening():
            found.append(requests())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False]
