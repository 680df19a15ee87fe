"""Recorded sums: a flipped byte is found by name, in folders that we wrote and in those of the hub."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests import forked
from tests.test_convert import ROOT, write_release
from wanjax import convert, hub, manifest
from wanjax.family import MEMBERS


def flip(file, at=-5):
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1
    file.write_bytes(raw)


def command(*arguments):
    return forked.run([sys.executable, "-m", "experiments.convert", *map(str, arguments)])


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release"), MEMBERS["Wan2.1-T2V-1.3B"], tokenizer=False)


@pytest.mark.parametrize("layout", hub.LAYOUTS)
def test_a_flipped_byte_in_any_file_is_found_by_name(release, tmp_path, layout):
    folder = tmp_path / "out"
    convert.convert(release, folder, layout=layout)
    report = manifest.verify(folder)
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    assert sorted(report.checked) == [name for name in files if name != manifest.NAME]
    assert (report.problems, report.unrecorded) == ([], [])
    for name in report.checked[:: max(1, len(report.checked) // 6)]:
        file = folder / name
        if file.stat().st_size < 5:
            continue
        flip(file)
        (problem,) = manifest.verify(folder).problems
        assert problem.startswith(f"{name} is damaged: its sum is ")
        flip(file)
    assert not manifest.verify(folder).problems


def test_the_manifest_says_what_the_folder_is_and_was_made_from(release, tmp_path):
    convert.convert(release, tmp_path / "out", layout="orbax", dtype="float32")
    record = json.loads((tmp_path / "out" / manifest.NAME).read_text())
    assert (record["layout"], record["source"], record["dtype"], record["fp8"]) == (
        "orbax", str(release), "float32", False)  # fmt: skip
    name = "vae/config.json"
    raw = (tmp_path / "out" / name).read_bytes()
    assert record["files"][name] == {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
    inner = json.loads((tmp_path / "out/vae" / manifest.NAME).read_text())
    assert inner["files"]["config.json"] == record["files"][name]


def test_what_is_missing_or_new_is_named(release, tmp_path):
    convert.convert(release, tmp_path / "out")
    (tmp_path / "out/vae/config.json").unlink()
    (tmp_path / "out/note.txt").touch()
    report = manifest.verify(tmp_path / "out")
    assert report.problems == ["vae/config.json is missing"] and report.unrecorded == ["note.txt"]
    (tmp_path / "out" / manifest.NAME).write_text('{"files": {"a": {}}}')
    with pytest.raises(ValueError, match=rf"{manifest.NAME} is damaged"):
        manifest.verify(tmp_path / "out")


def git_sum(raw):
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


def test_the_cache_of_the_hub_is_checked_by_the_names_of_its_blobs(tmp_path):
    repository = tmp_path / "models--owner--name"
    snapshot, contents = repository / "snapshots/0123", {"vae/weights.safetensors": b"w" * 999, "config.json": b"{} "}
    for name, raw in contents.items():
        blob = repository / "blobs" / (hashlib.sha256(raw).hexdigest() if "weights" in name else git_sum(raw))
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(raw)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (snapshot / "mine.txt").touch()
    report = manifest.verify(snapshot)
    assert (sorted(report.checked), report.problems, report.unrecorded) == (sorted(contents), [], ["mine.txt"])
    for name in contents:
        flip(snapshot / name, 1)
        (problem,) = manifest.verify(snapshot).problems
        assert problem.startswith(f"{name} is damaged")
        flip(snapshot / name, 1)


def test_a_download_to_a_chosen_folder_is_checked_by_its_metadata(tmp_path):
    from huggingface_hub._local_folder import write_download_metadata  # the format is the library's own

    contents = {"vae/weights.safetensors": b"w" * 999, "config.json": b"{} "}
    for name, raw in contents.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(raw)
        etag = hashlib.sha256(raw).hexdigest() if "weights" in name else git_sum(raw)
        write_download_metadata(tmp_path, name, commit_hash="0" * 40, etag=etag)
    report = manifest.verify(tmp_path)
    assert (sorted(report.checked), report.problems, report.unrecorded) == (sorted(contents), [], [])
    flip(tmp_path / "vae/weights.safetensors", 1)
    assert [problem.split()[0] for problem in manifest.verify(tmp_path).problems] == ["vae/weights.safetensors"]


def test_nothing_recorded_is_said(release, tmp_path):
    with pytest.raises(ValueError, match="nothing to check it against"):
        manifest.verify(release)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        manifest.verify(tmp_path / "nowhere")


def test_the_command_converts_and_verifies_and_its_exit_code_tells(release, tmp_path):
    done = command("--src", release, "--dst", tmp_path / "out", "--layout", "orbax", "--dtype", "float16")
    assert done.returncode == 0, done.stderr
    assert "rounding to float16 changed the weights by" in done.stdout
    assert "OCDBT" not in done.stderr and "checkpoint_handler" not in done.stderr
    done = command("--verify", "--src", tmp_path / "out")
    assert done.returncode == 0 and "0 wrong" in done.stdout, done.stderr
    flip(next(file for file in (tmp_path / "out/transformer/params").rglob("0") if file.is_file()))
    done = command("--verify", "--src", tmp_path / "out")
    assert done.returncode == 1 and "transformer/params/" in done.stdout and "is damaged" in done.stdout
    done = command("--verify", "--src", tmp_path / "out", "--layout", "orbax")
    assert done.returncode == 1 and "leave out --layout" in done.stderr
    done = command("--src", release)
    assert done.returncode == 1 and "--dst: name the folder to write" in done.stderr


def test_a_killed_conversion_leaves_no_folder_of_its_name(release, tmp_path):
    target, left = tmp_path / "out", tmp_path / "out.part"
    arguments = [sys.executable, "-m", "experiments.convert", "--src", release, "--dst", target, "--layout", "orbax"]
    process = subprocess.Popen(arguments, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    while process.poll() is None and not (left / "transformer").exists():
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert left.is_dir() and not target.exists()
    convert.convert(release, target, layout="orbax")
    assert not left.exists() and not manifest.verify(target).problems
