"""How fast training goes: seconds per step, tokens per second, MFU, and what the devices waited for.

**What the clock measures.** A step is given to the devices and runs while the host goes on; the host reads its metrics
one step late. The time of step n is taken on the host between two such readings, that of step n − 1 and that of n.
Where the devices are the slower side this is what step n took on them; where the host is (a batch that comes late), it
is what the host took. Nothing is waited for that the loop would not wait for anyway.

**What is not a step's time.** Compilation, validation, previews, saves of checkpoints, and the profiler's start and end
are reported in seconds of their own. A reading across one of them is no step's time and is left out, as are the steps
that the profiler records. After validation, a preview or a save no step is in flight: the clock starts anew, and the
next step is counted with the whole of its wait for data. What still runs beside the steps then, such as the writing of
a checkpoint in the background, is in their time.

**MFU**, model FLOPs utilization (Chowdhery et al. 2022, PaLM, appendix B): model FLOPs per step
(:func:`wanjax.flops.training` or ``lora_training`` × clips) / (mean seconds per step × dense bfloat16 peak of all
devices), whatever dtype the model computes in.

**Waiting for data.** ``data_wait`` is the share of time that the host spent on getting batches and putting them on the
devices. As long as a step is in flight meanwhile, it costs nothing. ``data_stall`` is the share of those waits at whose
end no step was in flight any more: the devices may have stood still for all of it, and the pipeline is too slow.
"""
from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from wanjax import flops
from wanjax.chips import GPUS, TPUS
from wanjax.lora_config import LoraConfig
from wanjax.models.dit_config import DiTConfig
from wanjax.models.rows.dit import dit_rows

# dense bfloat16 FLOP/s by jax.Device.device_kind, exactly: a part of a card (MIG) has another name and no entry.
# TPU: the planner's table. GPU: NVIDIA's data sheets of A100, H100 and H200, half of what they give with sparsity.
_TPU = {name: chip.flops / chip.devices for name, chip in TPUS.items()}
PEAK = {
    "TPU v4": _TPU["v4"],
    "TPU v5 lite": _TPU["v5e"], "TPU v5e": _TPU["v5e"],
    "TPU v5": _TPU["v5p"], "TPU v5p": _TPU["v5p"],
    "TPU v6 lite": _TPU["v6e"], "TPU v6e": _TPU["v6e"],
    "TPU7x": _TPU["tpu7x"],
    "NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12, "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": GPUS["h100"].flops, "NVIDIA H100 PCIe": 756.5e12, "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H200": GPUS["h200"].flops, "NVIDIA H200 NVL": 835.5e12,
}  # fmt: skip
# data_stall, and seconds of it in the window, from which the input pipeline is named in a warning
SLOW_INPUT, NOTICED_SECONDS = 0.1, 0.5


class Device(Protocol):
    """What is asked of a jax.Device."""

    @property
    def device_kind(self) -> str: ...


def peak(devices: Iterable[Device]) -> float | None:
    """Dense bfloat16 FLOP/s of all devices together; None if one of them is of a kind that is not in ``PEAK``."""
    rates = [PEAK.get(device.device_kind) for device in devices]
    known = [rate for rate in rates if rate is not None]
    return sum(known) if len(known) == len(rates) else None


@dataclasses.dataclass(frozen=True)
class Work:
    """What one optimizer step does.

    Attributes:
      tokens: latent tokens, N × clips, over all devices.
      flops: model FLOPs.
      peak: FLOP/s of all devices, or None.
    """

    tokens: int
    flops: int
    peak: float | None


def work_of(config: DiTConfig, batch: Mapping[str, Any], devices: Iterable[Device], lora: LoraConfig | None = None
            ) -> Work:
    """Of a step on a global batch {"latents": [B,F,h,w,C], "text": [B,L,E]}, of the network or of its factors."""
    clips, f, h, w = batch["latents"].shape[:4]
    tokens, text = int(np.prod(config.grid((f, h, w)))), batch["text"].shape[1]
    own = (flops.lora_training(config, tokens, text, lora.rows(dit_rows(config))) if lora and lora.rank
           else flops.training(config, tokens, text))
    return Work(clips * tokens, clips * own, peak(devices))


class StepClock:
    """Times the steps of a loop that reads every step's metrics late; see the module for what it measures.

    Args:
      name: of what is trained, e.g. "high expert"; for warnings.
      step: that the loop starts after.
      every: steps between windows.
      now: seconds, monotonic.
    """

    def __init__(self, name: str, step: int, every: int, now: Callable[[], float] = time.monotonic):
        self.step = step  # the last one that was read
        self._name, self._every, self._now = name, every, now
        self._in_flight, self._first = 0, True
        self._since: float | None = None  # when the step that is read next began; None: it will not be timed
        self._held, self._stepped = 0.0, 0.0  # by the last save; by timed steps since the save before it
        self._open()

    def _open(self) -> None:
        self._opened, self._opened_after = self._now(), self.step
        self._seconds: list[float] = []
        self._apart: dict[str, float] = {}
        self._wait = self._stall = 0.0

    @contextlib.contextmanager
    def batch(self, before: Mapping[str, Any] | None) -> Iterator[None]:
        """Around getting the next step's batch.

        Args:
          before: metrics of the step before, a jax.Array each, where they have not been read yet. Whether they are
            ready is asked after the wait; nothing waits for them.
        """
        started = self._now()
        yield
        taken = self._now() - started
        if self._first:  # the pipeline starts: no sign of its speed
            self._first = False
            self._apart["first_batch"] = taken
        else:
            self._wait += taken
            if before is None or next(iter(before.values())).is_ready():
                self._stall += taken
        self._in_flight += 1

    @contextlib.contextmanager
    def apart(self, what: str) -> Iterator[None]:
        """Around what is no part of a step: "compile", "validation", "preview", "checkpoint", "profile"."""
        started = self._now()
        yield
        ended = self._now()
        taken = ended - started
        self._apart[what] = self._apart.get(what, 0.0) + taken
        if what == "checkpoint":
            self._held = taken
        self._since = None if self._in_flight else ended

    def read(self, step: int, timed: bool = True) -> None:
        """When a step's metrics have come."""
        now = self._now()
        if self._since is not None and timed:
            self._seconds.append(now - self._since)
            self._stepped += now - self._since
        self._since = now
        self.step, self._in_flight = step, self._in_flight - 1

    @property
    def due(self) -> bool:
        """Whether the steps that were read have passed the end of the window."""
        return self.step // self._every > self._opened_after // self._every

    def window(self, work: Work) -> dict[str, float]:
        """Closes the window and gives its figures; a warning names the input pipeline if the devices waited for it.

        Keys: ``steps``, of which ``timed_steps`` have a time; ``seconds`` of the window; ``model_flops_per_step``; of
        the timed steps ``step_seconds_p50``, ``_p90``, ``_max``, ``_mean``, ``tokens_per_second``,
        ``model_flops_per_second`` and, where the peak is known, ``mfu``; ``data_wait`` and ``data_stall``, shares of
        the window without what is apart; ``<what>_seconds`` of what was apart.
        """
        seconds = self._now() - self._opened
        inside = max(seconds - sum(self._apart.values()), 1e-9)
        figures: dict[str, float] = {"steps": self.step - self._opened_after, "timed_steps": len(self._seconds),
                                     "seconds": seconds, "model_flops_per_step": work.flops}
        if self._seconds:
            times, mean = np.asarray(self._seconds), float(np.mean(self._seconds))
            figures |= {"step_seconds_p50": float(np.percentile(times, 50)),
                        "step_seconds_p90": float(np.percentile(times, 90)),
                        "step_seconds_max": float(times.max()), "step_seconds_mean": mean,
                        "tokens_per_second": work.tokens / mean, "model_flops_per_second": work.flops / mean}
            if work.peak is not None:
                figures["mfu"] = work.flops / (mean * work.peak)
        figures |= {"data_wait": self._wait / inside, "data_stall": self._stall / inside}
        figures |= {f"{what}_seconds": taken for what, taken in self._apart.items()}
        if figures["data_stall"] > SLOW_INPUT and self._stall > NOTICED_SECONDS:
            logging.warning(
                "%s: the input pipeline is slow: up to %.0f %% of the time of steps %d-%d was spent waiting for "
                "batches with nothing left to compute (%.2f s per step). Put config.data.cache_dir on faster storage, "
                "or give the run more processor cores", self._name, 100 * figures["data_stall"], self._opened_after + 1,
                self.step, self._stall / max(figures["steps"], 1))
        self._open()
        return figures

    def save(self) -> dict[str, float]:
        """Of the save that has just been made: ``checkpoint_stall_seconds``, for which it held the loop, and
        ``checkpoint_stall``, their share of the time of the save and the timed steps since the save before."""
        figures = {"checkpoint_stall_seconds": self._held}
        if self._stepped:
            figures["checkpoint_stall"] = self._held / (self._held + self._stepped)
        self._stepped = 0.0
        return figures
