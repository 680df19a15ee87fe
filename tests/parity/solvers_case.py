"""The solvers' parity case: a nonlinear velocity and a start, so that only the reference's results are recorded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wanjax.solvers import Solver

RECORDED = Path(__file__).parent / "data" / "solvers.safetensors"
NAMES = ("unipc", "dpm++")  # the solvers of Wan's reference
STEPS = (4, 20, 40)
SHIFTS = (1.0, 3.0, 5.0, 8.0, 12.0)
COMBINATIONS = tuple(itertools.product(SHIFTS, STEPS))


def key(name: str, shift: float, steps: int) -> str:
    """Name of one recorded trajectory [S, 4]: per step its timestep and the three elements of the sample after it."""
    return f"{name}, shift {shift:g}, {steps} steps"


def start() -> np.ndarray:
    """[3] float32: a value on each side of zero and one near it."""
    return np.array([-1.3, 0.2, 0.9], np.float32)


def velocity(x: np.ndarray, timestep: float) -> np.ndarray:
    """Nonlinear in x and dependent on the timestep that the network would see; float32."""
    x = np.asarray(x, np.float32)
    return np.tanh(np.float32(1.3) * x + np.float32(timestep) / np.float32(700.0)) + np.float32(0.3) * x


def trajectory(solver: Solver, x: np.ndarray) -> Iterator[np.ndarray]:
    """The sample after each step, x being float32."""
    state = solver.init(x)
    for i, timestep in enumerate(solver.timesteps):
        x, state = solver.step(state, x, velocity(x, timestep), i)
        yield x
