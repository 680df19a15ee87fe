"""Log of one expert's training: metrics (every step) and throughput as JSON lines, TensorBoard, sample grids, a bar."""
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
    """Writes ``metrics.jsonl``, ``throughput.jsonl``, TensorBoard events and ``preview/`` under one folder.

    A line of metrics holds ``step`` and either the step's loss terms or the validation losses. These lines carry no
    clock, so that two runs that computed the same have the same file; what a clock says is in the lines of throughput
    (``wanjax.throughput``). As a context it closes itself.

    Every method raises RunLogError where the disk takes no more.
    """

    def __init__(self, folder: str | os.PathLike[str], *, name: str, steps: int, log_every: int, progress: bool = True):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path, self.throughput_path = self.folder / "metrics.jsonl", self.folder / "throughput.jsonl"
        self._name, self._steps, self._every, self._progress = name, steps, log_every, progress
        self._file: TextIO | None = None
        self._throughput: TextIO | None = None
        self._board: _Events | None = None
        self._bar: tqdm.tqdm | None = None
        self._metrics_shown: dict[str, str] = {}
        self._throughput_shown: dict[str, str] = {}

    def cut(self, step: int) -> None:
        """Starts writing after ``step``: lines past it, or torn by a crash, are dropped."""
        with self._writing():
            self._file, self._throughput = _cut(self.path, step), _cut(self.throughput_path, step)
            self._board = _Events(self.folder / "tensorboard", step + 1)
        self._bar = tqdm.tqdm(total=self._steps, initial=step, desc=self._name, unit="step", disable=not self._progress,
                              dynamic_ncols=True,
                              mininterval=1.0 if sys.stderr.isatty() else 30.0)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """One training step's metrics."""
        self._line(self._file, step, metrics)
        assert self._bar is not None and self._board is not None
        self._bar.update(step - self._bar.n)
        if step % self._every == 0 or step == self._steps:
            self._metrics_shown = {k.removeprefix("loss/"): f"{v:.4f}" for k, v in metrics.items()}
            self._show()
            with self._writing():
                self._board.scalars(step, metrics)

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Validation losses after a step."""
        self._line(self._file, step, metrics)
        assert self._board is not None
        with self._writing():
            self._board.scalars(step, metrics)
            self._board.flush()
        tqdm.tqdm.write(f"{self._name} step {step}: validation/velocity {metrics['validation/velocity']:.4f}")

    def throughput(self, step: int, figures: Mapping[str, float]) -> None:
        """What a clock says of the steps up to this one, or of a save after it."""
        self._line(self._throughput, step, figures)
        assert self._board is not None
        if "tokens_per_second" in figures:
            self._throughput_shown = {"tokens/s": tqdm.tqdm.format_sizeof(figures["tokens_per_second"])}
            if "mfu" in figures:
                self._throughput_shown["MFU"] = f"{figures['mfu']:.1%}"
            self._show()
        with self._writing():
            self._board.scalars(step, {f"throughput/{name}": value for name, value in figures.items()})

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
            for part in (self._file, self._throughput, self._board, self._bar):
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

    def _line(self, file: TextIO | None, step: int, values: Mapping[str, float]) -> None:
        if file is None:
            raise ValueError("RunLog.cut(step) opens the log: call it before writing")
        with self._writing():
            file.write(json.dumps({"step": step, **values}) + "\n")

    def _show(self) -> None:
        assert self._bar is not None
        self._bar.set_postfix({**self._metrics_shown, **self._throughput_shown}, refresh=False)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunLogError(f"the log in {self.folder} cannot be written ({error.strerror or error}); checkpoints "
                              "are untouched. Free disk space and launch again: it goes on from the newest") from error


class SilentLog:
    """Stands for a RunLog in a process that leaves writing to another: takes everything and keeps nothing.

    Attributes:
      folder: of the log that the other process writes; what profiles this process goes there, too.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = pathlib.Path(folder)

    def cut(self, step: int) -> None: ...
    def step(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def validation(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def throughput(self, step: int, figures: Mapping[str, float]) -> None: ...
    def image(self, step: int, image: np.ndarray) -> None: ...


def _cut(path: pathlib.Path, step: int) -> TextIO:
    """Opens a file of JSON lines for writing after ``step``; lines past it, or torn by a crash, are dropped."""
    kept = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (json.JSONDecodeError, KeyError):
                continue  # a line torn by a crash; its step is done again
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    os.replace(temporary, path)
    return path.open("a", buffering=1)
