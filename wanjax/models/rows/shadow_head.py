"""Rows of the shadow head; other software has no names for them."""

from __future__ import annotations

from wanjax.models.dit_config import DiTConfig
from wanjax.models.rows import Row
from wanjax.models.shadow_head_config import ShadowHeadConfig

KEY = "shadow_head"


def shadow_head_rows(config: ShadowHeadConfig, model: DiTConfig, cells: int) -> tuple[Row, ...]:
    """One row per tensor of :class:`wanjax.models.shadow_head.ShadowHead` with ``cells`` a side of a latent."""
    width, taps = config.width, len(config.depths)
    outputs = model.patch_size * cells**2
    return (
        Row((KEY, "projection", "kernel"), (taps, model.width, width), (None, "embed", None)),
        Row((KEY, "projection", "bias"), (width,), (None,)),
        Row((KEY, "time", "kernel"), (config.kernel, width, width), (None, None, None)),
        Row((KEY, "time", "bias"), (width,), (None,)),
        Row((KEY, "out", "kernel"), (width, outputs), (None, None)),
        Row((KEY, "out", "bias"), (outputs,), (None,)),
    )
