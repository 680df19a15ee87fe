"""A request to stop, SIGTERM or SIGINT, obeyed by all processes after the same step."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """A request to stop was obeyed; what is done is saved."""


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Gives ``stopping(step)``: whether to stop after this step; signals do nothing else meanwhile.

    Among several processes a signal to any of them counts, and all must ask after each of their steps: JAX's
    coordination service lets them agree on the next step that none of them has finished. It has the handler of SIGTERM
    from the start of the program, and SIGINT is passed on to it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # signals reach the main thread only
        return
    if jax.process_count() > 1:
        with _handling(lambda: os.kill(os.getpid(), signal.SIGTERM), signal.SIGINT):
            yield multihost_utils.reached_preemption_sync_point
        return
    asked = threading.Event()
    with _handling(asked.set, signal.SIGTERM, signal.SIGINT):
        yield lambda step: asked.is_set()


@contextlib.contextmanager
def _handling(act: Callable[[], object], *signals: signal.Signals) -> Iterator[None]:
    old = {each: signal.signal(each, lambda *_: act()) for each in signals}
    try:
        yield
    finally:
        for each, handler in old.items():
            signal.signal(each, handler)
