"""XLA's flags for the tests, which compile far more than they compute: read before jax starts, so jax is not imported.

Kernels are made in one piece, without LLVM's optimizations and, where jaxlib still has it (0.10), by XLA's older
emitter: a codec's training step is then compiled in 3.7 s of processor time, and in 9.3 s with the new one.
"""
from __future__ import annotations

import importlib.metadata

QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # 0.11 knows no such flag, and XLA ends at unknown ones
    QUICK += " --xla_cpu_use_fusion_emitters=false"
EIGHT_DEVICES = f"--xla_force_host_platform_device_count=8 {QUICK}"
