"""A request to stop, SIGTERM or SIGINT, obeyed by all processes after the same step."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """A request to stop was obeyed; what is done is saved."""


class StopRequests:
    """Whether this run was asked to stop; one for all that it trains, so that no request is forgotten between two.

    Among several processes a request to any of them counts, and all must ask equally often: JAX's coordination service
    lets them agree on the next question that none of them has asked. It has the handler of SIGTERM from the start of
    the program, and SIGINT is passed on to it. Its numbers of questions never begin anew, which it would take for
    ones that are long past.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._questions = itertools.count(1)

    def __call__(self) -> bool:
        """Whether to stop now: after a step, or before something else begins."""
        if threading.current_thread() is not threading.main_thread():
            return False  # signals reach the main thread only
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(next(self._questions)))
        return self._asked.is_set()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Signals ask to stop and do nothing else meanwhile."""
        if threading.current_thread() is not threading.main_thread():
            yield
        elif jax.process_count() > 1:
            with _handling(lambda: os.kill(os.getpid(), signal.SIGTERM), signal.SIGINT):
                yield
        else:
            with _handling(self._asked.set, signal.SIGTERM, signal.SIGINT):
                yield


@contextlib.contextmanager
def _handling(act: Callable[[], object], *signals: signal.Signals) -> Iterator[None]:
    old = {each: signal.signal(each, lambda *_: act()) for each in signals}
    try:
        yield
    finally:
        for each, handler in old.items():
            signal.signal(each, handler)
