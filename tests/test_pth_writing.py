"""Files of torch.save, written; what PyTorch reads of them is in tests/parity/test_torch_files_live.py."""

import sys

import pytest

from wanjax.pth_writing import require_torch, write_pth


def test_without_pytorch_the_extra_is_named_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    taken = []
    tensors = (taken.append(i) for i in range(3))
    for call in (lambda: write_pth(tmp_path / "new" / "x.pth", tensors), require_torch):
        with pytest.raises(ImportError, match=r'takes PyTorch, which is not installed: pip install "wanjax\[pth\]"'):
            call()
    assert not taken and not list(tmp_path.iterdir())
