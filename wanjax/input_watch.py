"""Says that the input pipeline is stalled while it is: a read that hangs is named instead of a silent run."""
from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Iterator
from types import TracebackType

_LOOKS = 10  # per timeout: how finely the watch sees


@dataclasses.dataclass
class _Wait:
    step: int
    since: float
    said: int = 0  # warnings so far; the watching thread's alone until the wait is over


class InputWatch:
    """Watches the waits for batches from a thread of its own, which only warns: nothing is interrupted.

    As a context it starts and ends the thread.

    Args:
      name: of what is trained, e.g. "high expert".
      timeout: seconds until a wait is called a stall, and between two warnings about the same one.
    """

    def __init__(self, name: str, timeout: float):
        self._name, self._timeout = name, timeout
        self._wait: _Wait | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="input watch", daemon=True)

    @contextlib.contextmanager
    def batch(self, step: int) -> Iterator[None]:
        """Around the wait for the batch of a step."""
        self._wait = wait = _Wait(step, time.monotonic())
        try:
            yield
        finally:
            self._wait = None
        if wait.said:
            logging.warning("%s: the batch of step %d came after %.3g s; training goes on", self._name, step,
                            time.monotonic() - wait.since)

    def __enter__(self) -> InputWatch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(self._timeout / _LOOKS):
            wait = self._wait  # replaced as a whole, so no lock is needed
            if wait is None:
                continue
            taken = time.monotonic() - wait.since
            if taken >= self._timeout * (wait.said + 1):
                wait.said += 1
                logging.warning(
                    "%s: the input pipeline is stalled: the batch of step %d has not come for %.3g s "
                    "(config.train.batch_timeout = %g). Look at the storage of config.data.cache_dir and at this "
                    "machine's memory; training goes on as soon as the batch comes", self._name, wait.step, taken,
                    self._timeout)
