"""Where Wan2.2's high-noise expert hands over to the low-noise one."""

from __future__ import annotations

# noise level by task: of wan/configs/wan_t2v_A14B.py and wan_i2v_A14B.py; no official folder states it
BOUNDARIES = {"t2v": 0.875, "i2v": 0.9}
