"""What the training loop does: the config section of ``wanjax.train``."""
from __future__ import annotations

import dataclasses

EXPERTS = ("high", "low")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """What the loop does.

    Attributes:
      expert: "high", "low" or "both" (one after the other, each with its own state and step count). A single expert,
        of boundary 0, is "high", and all that "both" names.
      steps_high, steps_low: optimizer steps of each expert.
      boundary: noise level that divides the experts: high sees timesteps [1000·boundary, 1000], low [0, 1000·boundary).
        0: there is one expert, which sees [0, 1000].
      shift: of the timestep density, σ' = s·σ / (1 + (s − 1)·σ), cut to the expert's range.
      first_frame: probability with which a clip is trained with its first frame given (``wanjax.first_frame``); 1 for a
        transformer that reads image latents.
      accumulate: micro-batches per optimizer step.
      log_every: steps between TensorBoard points, progress updates and lines of throughput.jsonl (metrics.jsonl has a
        line for every step).
      checkpoint_every, keep: steps between checkpoints, and how many of the newest stay on disk.
      validate_every, validation_bins: steps between validations; equal-width noise bins over the expert's range.
      preview_every: steps between sample grids; 0 for none.
      init_from: a wanjax run, any layout that the hub opens, or the name of shipped experts; weights only; "" starts
        from random weights.
      batch_timeout: seconds that one batch may take before a warning says that the input pipeline is stalled, and again
        after as many; nothing is stopped.
      profile_from, profile_steps: first step, counted as in the log, and number of steps that the profiler records into
        ``profile/`` of the expert's folder; 0 and 0 for none.
    """

    expert: str = "both"
    steps_high: int = 1000
    steps_low: int = 1000
    boundary: float = 0.875
    shift: float = 5.0
    first_frame: float = 0.0
    accumulate: int = 1
    log_every: int = 20
    checkpoint_every: int = 500
    keep: int = 2
    validate_every: int = 500
    validation_bins: int = 4
    preview_every: int = 0
    init_from: str = ""
    batch_timeout: float = 300.0
    profile_from: int = 0
    profile_steps: int = 0

    def __post_init__(self) -> None:
        if self.expert not in (*EXPERTS, "both"):
            raise ValueError(f"expert = {self.expert!r}: expected 'high', 'low' or 'both'")
        if not 0.0 <= self.boundary < 1.0 or self.shift <= 0:
            raise ValueError(f"boundary = {self.boundary}, shift = {self.shift}: expected in [0, 1) and > 0")
        if self.boundary == 0.0 and self.expert == "low":
            raise ValueError("expert = 'low', but boundary = 0 gives every timestep to a single expert, which is "
                             "called 'high': train that, or set the boundary between two experts")
        if not 0.0 <= self.first_frame <= 1.0:
            raise ValueError(f"first_frame = {self.first_frame}: expected a probability in [0, 1]")
        for name in ("steps_high", "steps_low", "accumulate", "log_every", "checkpoint_every", "keep",
                     "validate_every", "validation_bins"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: expected at least 1")
        if self.preview_every < 0:
            raise ValueError(f"preview_every = {self.preview_every}: expected 0 (none) or a number of steps")
        if not self.batch_timeout > 0.0:
            raise ValueError(f"batch_timeout = {self.batch_timeout}: expected seconds > 0")
        self._check_profile()

    def _check_profile(self) -> None:
        first, count = self.profile_from, self.profile_steps
        if (first, count) == (0, 0):
            return
        if first < 1 or count < 1:
            raise ValueError(f"profile_from = {first}, profile_steps = {count}: expected the first step to record, "
                             "from 1 on, and how many, or 0 and 0 for no profile")
        for name in self.experts:
            if first + count - 1 > self.steps(name):
                raise ValueError(f"profile_from = {first}, profile_steps = {count} end at step {first + count - 1}, "
                                 f"but steps_{name} = {self.steps(name)}: record earlier or fewer steps, or set "
                                 "expert to the one that is to be recorded")

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of those that are trained, in their order."""
        if self.expert == "both":
            return EXPERTS if self.boundary else EXPERTS[:1]
        return (self.expert,)

    def steps(self, expert: str) -> int:
        return {"high": self.steps_high, "low": self.steps_low}[expert]

    def timesteps(self, expert: str) -> tuple[float, float]:
        """The expert's range of timesteps, in [0, 1000]."""
        edge = 1000.0 * self.boundary
        return {"high": (edge, 1000.0), "low": (0.0, edge)}[expert]
