"""Parameters of scenes: seeded draws from ranges whose held-out bands only the test split sees."""

from dataclasses import dataclass

import numpy as np

BANDS = 9
HELD_OUT_BANDS = (2, 6)
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ClipSize:
    """Frames ``T``, height ``H``, width ``W`` and frames per second of a clip.

    ``supersample`` is the number of samples per pixel and axis.
    """

    frames: int = 17
    height: int = 64
    width: int = 64
    fps: float = 8.0
    supersample: int = 2

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width", "supersample"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"ClipSize.{name} = {value!r}: expected a whole number of at least 1")
        if not self.fps > 0:
            raise ValueError(f"ClipSize.fps = {self.fps!r}: expected a number above 0 (frames per second)")

    @property
    def duration(self) -> float:
        """Seconds from the first to the last frame; one frame's time for a single frame."""
        return max(self.frames - 1, 1) / self.fps

    @property
    def wideness(self) -> float:
        """Width over height, at least 1: what a wide picture shows more of than a square one."""
        return max(1.0, self.width / self.height)

    def times(self) -> np.ndarray:
        """``[T]`` seconds, the first frame at 0."""
        return np.arange(self.frames) / self.fps


def in_held_out_band(value: float, low: float, high: float) -> bool:
    """Whether ``value`` lies in a band of [low, high] that belongs to the test split."""
    band = int((value - low) / (high - low) * BANDS)
    return min(max(band, 0), BANDS - 1) in HELD_OUT_BANDS


class Draw:
    """Draws the parameters of one scene.

    Every range is cut into ``BANDS`` equal bands. Scenes of the test split draw ``value`` from the bands in
    ``HELD_OUT_BANDS`` alone, all others from the rest, so that no such parameter of a test scene was seen in
    training while all of them lie between seen ones. ``log`` keeps what was drawn, for the record and tests.
    """

    def __init__(self, seed: tuple[int, ...], held_out: bool) -> None:
        self._rng = np.random.default_rng(seed)
        self.held_out = held_out
        self.log: dict[str, tuple[float, float, float]] = {}

    def value(self, name: str, low: float, high: float) -> float:
        """A number of [low, high) from the bands of this split."""
        bands = [b for b in range(BANDS) if (b in HELD_OUT_BANDS) == self.held_out]
        band = bands[self._rng.integers(len(bands))]
        # The margin keeps rounding from carrying a draw over the edge of its band.
        value = low + (high - low) * (band + 0.001 + 0.998 * self._rng.random()) / BANDS
        self.log[name] = (value, low, high)
        return value

    def free(self, low: float, high: float) -> float:
        """A number of [low, high) whose range every split shares (phases, small jitter)."""
        return low + (high - low) * self._rng.random()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return bool(self._rng.random() < probability)
