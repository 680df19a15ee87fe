"""Metrics of one expert's training: JSON lines (every step), TensorBoard, sample grids and a progress bar."""
from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TextIO

import numpy as np
import PIL.Image
import tqdm
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter


class RunLogError(OSError):
    """The log cannot be written; the message names its folder and says what to do."""


class _Events:
    """TensorBoard's event file, written where it is asked to: a full disk is met by the caller, not by a thread."""

    def __init__(self, folder: pathlib.Path, first_step: int):
        folder.mkdir(exist_ok=True)
        self._records = RecordWriter(str(folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"))
        self._write(Event(file_version="brain.Event:2"))
        # events of an earlier launch from this step on are not shown
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._write(Event(step=step, summary=summary.scalar(name, value)))

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._write(Event(step=step, summary=summary.image(name, pixels, dataformats="HWC")))

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


class RunLog:
    """Writes ``metrics.jsonl``, TensorBoard events and ``preview/`` under one folder.

    A line holds ``step`` and either the step's loss terms or the validation losses. Lines carry no clock, so that
    two runs that computed the same have the same file. As a context it closes itself.

    Every method raises RunLogError where the disk takes no more.
    """

    def __init__(self, folder: str | os.PathLike[str], *, name: str, steps: int, log_every: int, progress: bool = True):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "metrics.jsonl"
        self._name, self._steps, self._every, self._progress = name, steps, log_every, progress
        self._file: TextIO | None = None
        self._board: _Events | None = None
        self._bar: tqdm.tqdm | None = None
        self._clock, self._clock_step = time.monotonic(), 0

    def cut(self, step: int) -> None:
        """Starts writing after ``step``: lines past it, or torn by a crash, are dropped."""
        kept = []
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (json.JSONDecodeError, KeyError):
                    continue  # a line torn by a crash; its step is done again
        with self._writing():
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept))
            os.replace(temporary, self.path)
            self._file = self.path.open("a", buffering=1)
            self._board = _Events(self.folder / "tensorboard", step + 1)
        self._bar = tqdm.tqdm(total=self._steps, initial=step, desc=self._name, unit="step", disable=not self._progress,
                              dynamic_ncols=True,
                              mininterval=1.0 if sys.stderr.isatty() else 30.0)
        self._clock, self._clock_step = time.monotonic(), step

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """One training step's metrics."""
        self._write(step, metrics)
        assert self._bar is not None and self._board is not None
        self._bar.update(step - self._bar.n)
        if step % self._every == 0 or step == self._steps:
            now = time.monotonic()
            speed = (step - self._clock_step) / max(now - self._clock, 1e-9)
            self._clock, self._clock_step = now, step
            self._bar.set_postfix({k.removeprefix("loss/"): f"{v:.4f}" for k, v in metrics.items()}, refresh=False)
            with self._writing():
                self._board.scalars(step, {**metrics, "steps_per_second": speed})

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Validation losses after a step."""
        self._write(step, metrics)
        assert self._board is not None
        with self._writing():
            self._board.scalars(step, metrics)
            self._board.flush()
        tqdm.tqdm.write(f"{self._name} step {step}: validation/velocity {metrics['validation/velocity']:.4f}")

    def image(self, step: int, image: np.ndarray) -> None:
        """A sample grid [height, width, 3] uint8."""
        folder = self.folder / "preview"
        assert self._board is not None
        with self._writing():
            folder.mkdir(exist_ok=True)
            PIL.Image.fromarray(image).save(folder / f"step_{step:07d}.png")
            self._board.image(step, "preview", image)

    def close(self) -> None:
        with self._writing(), contextlib.ExitStack() as parts:
            for part in (self._file, self._board, self._bar):
                if part is not None:
                    parts.callback(part.close)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            self.close()
        except RunLogError:
            if error is None:  # else the error that is on its way says what happened
                raise

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._file is None:
            raise ValueError("RunLog.cut(step) opens the log: call it before writing")
        with self._writing():
            self._file.write(json.dumps({"step": step, **metrics}) + "\n")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunLogError(f"the log in {self.folder} cannot be written ({error.strerror or error}); checkpoints "
                              "are untouched. Free disk space and launch again: it goes on from the newest") from error
