"""Writes files of ``torch.save``: the ``.pth`` that Wan's own code opens its codec and text encoder from.

The one file of the library that uses PyTorch, and only when it is called; reading needs none (:mod:`torch_files`).
"""

from __future__ import annotations

import os
import pathlib
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

_DTYPES = ("float32", "float16", "bfloat16")


def require_torch() -> Any:
    """PyTorch.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            'writing .pth files takes PyTorch, which is not installed: pip install "wanjax[pth]", or write safetensors'
        ) from error
    return torch


def write_pth(file: str | os.PathLike[str], tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes tensors by name as ``torch.save`` of a state_dict, bit for bit, bfloat16 included.

    ``torch.save`` takes all of them at once, so all are in memory together: as much as the file is long, 11 GB for
    umT5-XXL in bfloat16. The file appears under its name once it is whole.

    Args:
        file: replaced if it is there; its folder is made if absent.
        tensors: float32, float16 or bfloat16 arrays, taken one at a time.

    Raises:
        ImportError: PyTorch is not installed; no tensor has been taken then.
        ValueError: a tensor of another type, or two of one name.
        OSError: the file cannot be written.
    """
    torch = require_torch()
    target = pathlib.Path(file)
    state: dict[str, Any] = {}
    for name, array in tensors:
        if name in state:
            raise ValueError(f"{target}: two tensors are called {name}")
        if array.dtype.name not in _DTYPES:
            raise ValueError(f"{target}: tensor {name} is {array.dtype.name}; .pth is written in {', '.join(_DTYPES)}")
        state[name] = _tensor(torch, np.asarray(array, order="C"))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{os.getpid()}.partial.{target.name}")
    try:
        # a stream, not a path: the archive would carry the temporary name inside
        with part.open("wb") as stream:
            torch.save(state, stream)
        part.replace(target)
    except RuntimeError as error:  # what PyTorch makes of a stream that fails
        why = error.__context__ if isinstance(error.__context__, OSError) else error
        raise OSError(f"{target} cannot be written ({why}): free the disk or choose another folder") from error
    finally:
        part.unlink(missing_ok=True)


def _tensor(torch: Any, array: np.ndarray) -> Any:
    """A tensor over the array's own memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing writes to it
        if array.dtype.name == "bfloat16":  # numpy's is not PyTorch's; the bits are the same
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
