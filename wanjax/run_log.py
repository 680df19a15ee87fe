"""Metrics of one expert's training: JSON lines (every step), TensorBoard, sample grids and a progress bar."""
from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import TextIO

import numpy as np
import PIL.Image
import tensorboardX
import tqdm


class RunLog:
    """Writes ``metrics.jsonl``, TensorBoard events and ``preview/`` under one folder.

    A line holds ``step`` and either the step's loss terms or the validation losses. Lines carry no clock, so that
    two runs that computed the same have the same file.
    """

    def __init__(self, folder: str | os.PathLike[str], *, name: str, steps: int, log_every: int, progress: bool = True):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "metrics.jsonl"
        self._name, self._steps, self._every, self._progress = name, steps, log_every, progress
        self._file: TextIO | None = None
        self._board: tensorboardX.SummaryWriter | None = None
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
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept))
        os.replace(temporary, self.path)
        self._file = self.path.open("a", buffering=1)
        self._board = tensorboardX.SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)
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
            for key, value in {**metrics, "steps_per_second": speed}.items():
                self._board.add_scalar(key, value, step)

    def validation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Validation losses after a step."""
        self._write(step, metrics)
        assert self._board is not None
        for key, value in metrics.items():
            self._board.add_scalar(key, value, step)
        tqdm.tqdm.write(f"{self._name} step {step}: validation/velocity {metrics['validation/velocity']:.4f}")

    def image(self, step: int, image: np.ndarray) -> None:
        """A sample grid [height, width, 3] uint8."""
        folder = self.folder / "preview"
        folder.mkdir(exist_ok=True)
        PIL.Image.fromarray(image).save(folder / f"step_{step:07d}.png")
        assert self._board is not None
        self._board.add_image("preview", image, step, dataformats="HWC")

    def close(self) -> None:
        for part in (self._bar, self._board, self._file):
            if part is not None:
                part.close()

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._file is None:
            raise ValueError("RunLog.cut(step) opens the log: call it before writing")
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
