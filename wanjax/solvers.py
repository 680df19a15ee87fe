"""Ordinary differential equation solvers for sampling: Euler, UniPC and DPM-Solver++ as pure (init, step).

Sampling follows dx/dσ = v(x, σ) from noise at the first σ down to σ = 0. Written in the network's x0
prediction m = x − σ v, every solver here is linear in what it has seen so far:

    x  ← correct · (x, last, m₋₁, m₋₂, m)       UniPC's corrector; the others leave x alone
    x' = predict · (x, m, m₋₁)

so a solver is two small tables, computed once in numpy float64 from λ = log((1 − σ) / σ) and handed to the
device in the latents' precision. `step` is the same few multiply-adds for all of them, with a Python or a
traced step number, which is what `lax.fori_loop` wants.

Sources. UniPC: Zhao et al. 2023, https://arxiv.org/abs/2302.04867 (order 2, B₂(h), x0 prediction).
DPM-Solver++ 2M: Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 2. Grids: the reference
implementation of Wan2.2 (wan/utils/fm_solvers_unipc.py, fm_solvers.py), diffusers 0.42, and for distilled checkpoints
LightX2V (lightx2v/models/schedulers/wan/step_distill/scheduler.py), whose few-step LoRAs are the ones in use.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wanjax import rectified_flow

Array = jax.Array | np.ndarray

NAMES = ("euler", "unipc", "dpm++")
GRIDS = ("official", "diffusers", "distilled")


class History(NamedTuple):
    """What a solver remembers, each of x's shape: the sample that the last step left from, and the two
    latest x0 predictions. Zeros before they exist; the tables give those no weight."""

    last: Array
    x0: Array
    x0_before: Array


@dataclasses.dataclass(frozen=True, eq=False)
class Solver:
    """A solver on a fixed grid of S steps; made by `make`.

    timesteps: [S] what the network is given and what the expert boundary is compared with; integers
      (1000 σ truncated) on every grid but the distilled one and the diffusers one of Euler.
    sigmas: [S + 1] float64 noise levels, descending, ending in 0. The first x is noise.
    correct: [S, 5] float64, weights of (x, last, m₋₁, m₋₂, m) in the corrected x of a step.
    predict: [S, 3] float64, weights of (corrected x, m, m₋₁) in the next x.
    """

    name: str
    timesteps: np.ndarray
    sigmas: np.ndarray
    correct: np.ndarray
    predict: np.ndarray

    def init(self, x: Array) -> History:
        """The state before the first step, for x of any shape [B, ...]."""
        zeros = (np if isinstance(x, np.ndarray) else jnp).zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))
        return History(zeros, zeros, zeros)

    def step(self, state: History, x: Array, velocity: Array, i: int | Array) -> tuple[Array, History]:
        """One step: from x at sigmas[i] to x at sigmas[i + 1].

        Args:
          state: from `init` or the step before.
          x: [B, ...] the sample, velocity: [B, ...] the network's answer at (x, timesteps[i]).
          i: step number in 0..S−1, a Python integer or a traced one (which cannot be checked here).
        Returns: (x' of x's dtype, state). Steps are to be taken in order; numpy stays numpy, and float64
          numpy stays float64. Anything narrower than float32 is computed in float32.
        Raises: IndexError where i is known and not a step of this grid.
        """
        known = isinstance(i, (int, np.integer))
        if known and not 0 <= i < len(self.timesteps):
            raise IndexError(f"step {i}: this {self.name} grid has steps 0..{len(self.timesteps) - 1}")
        on_host = known and isinstance(x, np.ndarray) and isinstance(velocity, np.ndarray)
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        if not on_host:
            dtype = jax.dtypes.canonicalize_dtype(dtype)

        def row(table: np.ndarray) -> Array:
            return table[i].astype(dtype) if known else jnp.asarray(table, dtype)[i]

        m = x.astype(dtype) - row(self.sigmas) * velocity.astype(dtype)
        correct, predict = row(self.correct), row(self.predict)
        now = correct[0] * x.astype(dtype) + correct[1] * state.last
        now = now + correct[2] * state.x0 + correct[3] * state.x0_before + correct[4] * m
        after = predict[0] * now + predict[1] * m + predict[2] * state.x0
        return after.astype(x.dtype), History(now, m, state.x0)


def make(name: str, *, steps: int, shift: float, grid: str = "official") -> Solver:
    """A solver and its grid.

    Args:
      name: "unipc" (order 2, bh2, with its corrector), "dpm++" (DPM-Solver++ 2M) or "euler".
      steps: S ≥ 1, calls of the network.
      shift: s of σ = s u / (1 + (s − 1) u), > 0. Wan2.2-T2V-A14B samples with 12.
      grid: "official" as the Wan2.2 reference runs it: UniPC from u = 0.999, DPM++ from exactly σ = 1, timesteps
        1000 σ truncated; Euler, which the reference does not have, shares the grid of DPM++.
        "diffusers" as the class of that solver in diffusers builds it: UniPCMultistepScheduler and
        DPMSolverMultistepScheduler with use_flow_sigmas and flow_shift = s, FlowMatchEulerDiscreteScheduler
        with shift = s, which shifts twice.
        "distilled" for checkpoints (or LoRAs) distilled to a few steps: u = 1, (S − 1) / S, …, 1 / S, every solver from
        exactly σ = 1, timesteps 1000 σ as they are. In use with S = 4, shift 5 and no guidance: timesteps 1000, 937.5,
        833.3, 625, two for each expert at boundary 0.875. They were distilled for the straight steps of Euler.
    Raises: ValueError naming what is unknown or out of range.
    """
    if name not in NAMES:
        raise ValueError(f"solver {name!r}: expected one of {', '.join(NAMES)}")
    if grid not in GRIDS:
        raise ValueError(f"grid {grid!r} of solver {name}: expected one of {', '.join(GRIDS)}")
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
        raise ValueError(f"steps = {steps!r}: expected a whole number >= 1")
    if not (math.isfinite(shift) and shift > 0):
        raise ValueError(f"shift = {shift!r}: expected a number > 0")
    build = {"official": _official_grid, "diffusers": _diffusers_grid, "distilled": _distilled_grid}[grid]
    sigmas, timesteps = build(name, int(steps), float(shift))
    sigmas = np.append(sigmas, 0.0)
    correct, predict = {"euler": _euler, "unipc": _unipc, "dpm++": _dpm_solver}[name](sigmas)
    return Solver(name, timesteps, sigmas, correct, predict)


def _official_grid(name: str, steps: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """(sigmas [S] without the final 0, timesteps [S] int64)."""
    # The reference keeps UniPC's 0.999 in float32: 13 nanounits more, which decide the truncation of exact thirds
    # at shift 1 (666, not 665) and nothing at the shifts in use.
    start = float(np.float32(0.999)) if name == "unipc" else 1.0
    sigmas = rectified_flow.shift_sigma(np.linspace(start, 0.0, steps + 1)[:-1], shift)
    return sigmas, (sigmas * rectified_flow.TIMESTEPS).astype(np.int64)


def _diffusers_grid(name: str, steps: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """(sigmas [S] without the final 0, timesteps [S])."""
    smallest = 1.0 / rectified_flow.TIMESTEPS
    if name == "euler":
        ends = rectified_flow.shift_sigma(np.array([1.0, smallest]), shift)
        sigmas = rectified_flow.shift_sigma(np.linspace(ends[0], ends[1], steps), shift)
        return sigmas, sigmas * rectified_flow.TIMESTEPS
    if name == "dpm++":
        u = np.flip(1.0 - np.linspace(1.0, smallest, steps + 1))[:-1]
    else:
        u = np.linspace(1.0, smallest, steps + 1)[:-1]
    sigmas = rectified_flow.shift_sigma(u, shift)
    if name == "unipc":
        sigmas[0] -= 1e-6  # keeps its λ finite
    return sigmas, (sigmas * rectified_flow.TIMESTEPS).astype(np.int64)


def _distilled_grid(name: str, steps: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """(sigmas [S] without the final 0, timesteps [S] float64), the same for every solver."""
    sigmas = rectified_flow.shift_sigma(np.linspace(1.0, 0.0, steps + 1)[:-1], shift)
    return sigmas, sigmas * rectified_flow.TIMESTEPS


def _half_log_snr(sigmas: np.ndarray) -> np.ndarray:
    """λ = log((1 − σ) / σ): −∞ at σ = 1, +∞ at σ = 0."""
    with np.errstate(divide="ignore"):
        return np.log(1.0 - sigmas) - np.log(sigmas)


def _uncorrected(steps: int) -> np.ndarray:
    """[S, 5]: x stays as it is."""
    return np.tile([1.0, 0.0, 0.0, 0.0, 0.0], (steps, 1))


def _euler(sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x' = x + (σ' − σ) v, with v = (x − m) / σ."""
    keep = sigmas[1:] / sigmas[:-1]
    return _uncorrected(len(keep)), np.stack([keep, 1.0 - keep, np.zeros_like(keep)], axis=1)


def _dpm_solver(sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DPM-Solver++ 2M. First order on the first step, which has no history, and on the last, where h = ∞;
    the second step comes from λ = −∞, so r = ∞ takes its second-order term away."""
    lam, steps = _half_log_snr(sigmas), len(sigmas) - 1
    predict = np.zeros((steps, 3))
    for i in range(steps):
        h = lam[i + 1] - lam[i]
        gain = -(1.0 - sigmas[i + 1]) * np.expm1(-h)  # −α' (e^−h − 1)
        slope = 0.0
        if 0 < i < steps - 1:
            r = (lam[i] - lam[i - 1]) / h
            slope = 0.5 * gain / r
        predict[i] = sigmas[i + 1] / sigmas[i], gain + slope, -slope
    return _uncorrected(steps), predict


def _unipc(sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """UniPC with B(h) = e^−h − 1 (bh2). Orders of the predictor: 1, 2, …, 2, 1; the corrector of a step has
    the order of the predictor that led to it. From σ = 1, where λ = −∞, the tables are their limits: h = ∞ in the
    first step, and r = −∞ in the second, which takes the older prediction away."""
    lam, steps = _half_log_snr(sigmas), len(sigmas) - 1
    correct, predict = _uncorrected(steps), np.zeros((steps, 3))
    order = [min(i + 1, 2, steps - i) for i in range(steps)]
    for i in range(steps):
        h = lam[i + 1] - lam[i]
        gain = -(1.0 - sigmas[i + 1]) * np.expm1(-h)
        slope = 0.0
        if order[i] == 2:
            r = (lam[i - 1] - lam[i]) / h
            slope = 0.5 * gain / r
        predict[i] = sigmas[i + 1] / sigmas[i], gain - slope, slope
    for i in range(1, steps):
        h = lam[i] - lam[i - 1]
        gain = -(1.0 - sigmas[i]) * np.expm1(-h)
        # b_k of the paper: k! φ_{k+1}(−h) / B(h)
        b1 = (np.expm1(-h) / -h - 1.0) / np.expm1(-h)
        b2 = 2.0 * ((np.expm1(-h) / -h - 1.0) / -h - 0.5) / np.expm1(-h)
        older, newest = 0.0, 0.5
        if order[i - 1] == 2:
            r = (lam[i - 2] - lam[i - 1]) / h
            older = (b1 - b2) / (1.0 - r)  # solves older + newest = b1, r older + newest = b2
            newest = b1 - older
            older = older / r
        correct[i] = 0.0, sigmas[i] / sigmas[i - 1], gain * (1.0 - older - newest), gain * older, gain * newest
    return correct, predict
