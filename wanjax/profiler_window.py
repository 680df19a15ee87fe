"""Records a few steps of training with JAX's profiler."""
from __future__ import annotations

import pathlib
from types import TracebackType

import jax


class ProfilerWindow:
    """Steps ``first`` … ``first + count − 1``, counted from the start of the run and not of the launch.

    Steps run while the host goes on, so the recording begins before the first step is given to the devices and ends
    when the last one's metrics have come; it also holds the end of the step before and the beginning of the one after.
    A launch that begins within the window records the rest of it. As a context it closes a recording that an error or
    a stop has left open: what was recorded until then is kept.

    Args:
      folder: created where absent; TensorBoard and XProf open it.
      first, count: of the steps; a count of 0 records nothing.
    """

    def __init__(self, folder: pathlib.Path, first: int, count: int):
        self._folder, self._first, self._last = folder, first, first + count - 1
        self.running = False

    def begins(self, step: int) -> bool:
        """Whether :meth:`start` is due before this step."""
        return not self.running and self._first <= step <= self._last

    def ends(self, step: int) -> bool:
        """Whether :meth:`stop` is due, now that this step is finished."""
        return self.running and step >= self._last

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        jax.profiler.start_trace(self._folder)
        self.running = True

    def stop(self) -> None:
        self.running = False
        jax.profiler.stop_trace()

    def __enter__(self) -> ProfilerWindow:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.running:
            self.stop()
