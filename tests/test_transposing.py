"""Copies of transposed matrices are exact, of any element size, mapped from a file or not."""

import jax.numpy as jnp
import numpy as np
import pytest

from wanjax.transposing import contiguous, copy_into


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(37, 53), (1, 7), (7, 1), (0, 3), (5,), (3, 4, 5), ()])
def test_a_copy_has_the_bits_of_what_it_copies(tmp_path, dtype, shape):
    rng = np.random.default_rng(0)
    dtype = jnp.dtype(dtype)
    raw = np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)  # NaNs included
    sources = [raw]
    if raw.size:
        file = tmp_path / "x"
        file.write_bytes(raw.tobytes())
        sources.append(np.memmap(file, np.uint8, "r").view(dtype).reshape(shape))
    for source in sources:
        for view in (source, source.T, source[::-1] if source.ndim else source, source.T[..., 1:] if shape else source):
            stack = np.empty((2, *view.shape), dtype)
            copy_into(stack[1, ...], view)
            assert stack[1].tobytes() == view.tobytes() == contiguous(view).tobytes()
            assert contiguous(view).flags.c_contiguous


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) float32 cannot be copied into \(3, 2\) float32"):
        copy_into(np.empty((3, 2), np.float32), np.empty((2, 3), np.float32))
    with pytest.raises(ValueError, match="float16 cannot"):
        copy_into(np.empty((3, 2), np.float32), np.empty((3, 2), np.float16))
