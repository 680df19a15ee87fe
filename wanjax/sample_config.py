"""How a clip is sampled: solver, steps, guidance, and which expert takes which step."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from wanjax import rectified_flow, solvers


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How a clip is sampled. The defaults are those of Wan2.2-T2V-A14B.

    Attributes:
        solver: "unipc", "dpm++" or "euler", see `wanjax.solvers`.
        grid: the solver's noise levels: "official", "diffusers", or "distilled" for weights distilled to a few steps,
            which go with 4 steps, shift 5, no guidance and Euler.
        steps: S, calls of the network (each on twice the clips where guidance is on).
        shift: of the noise levels, > 0.
        guidance_high, guidance_low: scale g of classifier-free guidance while the high-noise or the low-noise
            expert is at work: v = v(negative) + g (v(prompt) − v(negative)). At 1 the negative prompt is not run.
        boundary: timesteps ≥ 1000 · boundary belong to the high-noise expert. 0 gives it all of them.
        negative_prompt: what guidance leads away from.
    """

    solver: str = "unipc"
    grid: str = "official"
    steps: int = 40
    shift: float = 12.0
    guidance_high: float = 4.0
    guidance_low: float = 3.0
    boundary: float = 0.875
    negative_prompt: str = ""

    def __post_init__(self) -> None:
        solvers.make(self.solver, steps=self.steps, shift=self.shift, grid=self.grid)
        for name in ("guidance_high", "guidance_low"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} = {getattr(self, name)}: expected a finite number; 1 is no guidance")
        if not 0.0 <= self.boundary <= 1.0:
            raise ValueError(
                f"boundary = {self.boundary}: expected a noise level in [0, 1], 0.875 for Wan2.2-T2V-A14B"
            )

    @property
    def expert_steps(self) -> dict[str, int]:
        """How many of the steps each expert takes; they sum to `steps`."""
        timesteps = solvers.make(self.solver, steps=self.steps, shift=self.shift, grid=self.grid).timesteps
        high = int(np.sum(timesteps >= rectified_flow.TIMESTEPS * self.boundary))
        return {"high": high, "low": self.steps - high}

    def guidance(self, expert: str) -> float:
        """The scale while `expert` ("high" or "low") is at work."""
        return {"high": self.guidance_high, "low": self.guidance_low}[expert]
