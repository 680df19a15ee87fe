"""Eight simulated CPU devices for every test, and quick compilation: set before jax starts."""

import os

# a newcomer's machine: the accelerator of this one, if any, stays out of the tests
os.environ["JAX_PLATFORMS"] = "cpu"
# the tests compile far more than they compute
QUICK = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# one program at a time: on few cores, two programs of eight devices can starve each other's collectives
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"
