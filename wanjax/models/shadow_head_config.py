"""Shape of the shadow head."""
from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ShadowHeadConfig:
    """What the shadow head reads and how wide it is.

    Attributes:
      depths: shares of the transformer's depth after which hidden states are read, rising, in (0, 1].
      width: features between the projection and the output.
      kernel: frames of tokens that the convolution over time spans, odd.
    """

    depths: tuple[float, ...] = (1 / 3, 1 / 2, 2 / 3)
    width: int = 32
    kernel: int = 3

    def __post_init__(self) -> None:
        if not self.depths or any(not 0.0 < d <= 1.0 for d in self.depths) or \
                list(self.depths) != sorted(set(self.depths)):
            raise ValueError(f"depths = {self.depths}: expected rising shares of the depth in (0, 1]")
        if self.width < 1:
            raise ValueError(f"width = {self.width}: expected at least 1")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel = {self.kernel}: expected an odd number of frames")

    def taps(self, layers: int) -> tuple[int, ...]:
        """Numbers of blocks after which states are read.

        Raises:
          ValueError: if two depths fall on the same block.
        """
        taps = tuple(max(1, round(depth * layers)) for depth in self.depths)
        if len(set(taps)) < len(taps):
            raise ValueError(f"depths = {self.depths} of {layers} layers are blocks {taps}: two are the same; give "
                             "fewer depths or more layers")
        return taps
