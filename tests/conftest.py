"""Eight simulated CPU devices for every test, and quick compilation: set before jax starts."""

import atexit
import gc
import os
import shutil
import tempfile

from tests.xla_flags import EIGHT_DEVICES

# a newcomer's machine: the accelerator of this one, if any, stays out of the tests
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {EIGHT_DEVICES}".strip()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# one program at a time: on few cores, two programs of eight devices can starve each other's collectives
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"
# many tests, and the commands that they start, compile the same programs: once in all processes of one run is enough.
# Workers find the variable set by the process that started them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax-programs-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# an eighth of a test's time went into looking for garbage among what was imported, traced and compiled, which is none
gc.set_threshold(100_000, 20, 100)

# the files that take longest, longest first: one that is begun last would keep one core busy while others are idle
LONG = (
    "test_train_launcher", "test_train", "test_showcase", "test_codec_training", "test_vae_light", "test_vae_shipped",
    "test_sample", "test_vae_split", "test_probe_shadow", "test_first_frame", "test_convert", "test_plan",
    "test_attention", "test_vae", "test_colab", "test_lora", "test_lora_factors", "test_mesh_equivalence",
)


def pytest_collection_modifyitems(items):
    """Long files first; the Makefile tells xdist to keep this order, it sorts files by how many tests they hold."""
    rank = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONG)))


def pytest_collection_finish():
    """What collecting has imported stays: the garbage collector need not look at it again."""
    gc.freeze()
