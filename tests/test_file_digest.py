"""Sampled digests of files."""

import hashlib
import os

import numpy as np
import pytest

from wanjax.file_digest import sampled_digest

LARGE = 3_000_000


@pytest.fixture
def large(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(np.random.default_rng(0).bytes(LARGE))
    return file


def flipped(file, at):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    return content


def test_a_small_file_is_read_whole(tmp_path):
    content = os.urandom(300_000)
    (tmp_path / "a").write_bytes(content)
    assert sampled_digest([("x", tmp_path / "a")]) == hashlib.sha256(b"1 x 300000\n" + content).hexdigest()
    for at in (0, 65_536, 150_001, 299_999):
        (tmp_path / "b").write_bytes(flipped(tmp_path / "a", at))
        assert sampled_digest([("x", tmp_path / "b")]) != sampled_digest([("x", tmp_path / "a")])


def test_either_end_and_every_stretch_of_a_large_file_are_seen(tmp_path, large):
    before, other = sampled_digest([("x", large)]), tmp_path / "other"
    stretch = LARGE // 255  # no two samples are further apart
    for at in (0, 65_535, 65_536, LARGE - 65_537, LARGE - 65_536, LARGE - 1):
        other.write_bytes(flipped(large, at))
        assert sampled_digest([("x", other)]) != before, at
    for start in np.random.default_rng(1).integers(0, LARGE - stretch, 20):
        content = bytearray(large.read_bytes())
        content[start : start + stretch] = bytes(stretch)
        other.write_bytes(content)
        assert sampled_digest([("x", other)]) != before, start


def test_little_of_a_large_file_is_read(tmp_path):
    """A sparse file of 1 TiB."""
    with (tmp_path / "weights").open("wb") as stream:
        stream.truncate(2**40)
    longer = tmp_path / "longer"
    with longer.open("wb") as stream:
        stream.truncate(2**40 + 1)
    assert sampled_digest([("x", tmp_path / "weights")]) != sampled_digest([("x", longer)])


def test_names_count_and_places_and_order_do_not(tmp_path, large):
    moved = tmp_path / "elsewhere"
    moved.write_bytes(large.read_bytes())
    small = tmp_path / "small"
    small.write_bytes(b"s")
    digest = sampled_digest([("a", large), ("b", small)])
    assert sampled_digest([("b", small), ("a", moved)]) == digest
    assert sampled_digest([("b", large), ("a", small)]) != digest
    assert sampled_digest([("a", large)]) != digest


def test_what_cannot_be_told_apart_or_found_is_refused(tmp_path, large):
    with pytest.raises(ValueError, match="several files are called x"):
        sampled_digest([("x", large), ("x", large)])
    with pytest.raises(FileNotFoundError, match="absent"):
        sampled_digest([("x", tmp_path / "absent")])
