"""What is shipped: declared dependencies, pinned versions, typed package, shipped data."""

import pathlib
import re
import sys
import tomllib

import pytest

import wanjax
from tests.test_layering import ROOMS, imports, python_files

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# import name -> name of the distribution, where they differ
DISTRIBUTION = {"cv2": "opencv-python-headless", "PIL": "pillow", "orbax": "orbax-checkpoint", "absl": "absl-py",
                "tensorboardX": "tensorboardx", "yaml": "pyyaml"}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_names(lines):
    return {normal(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in lines}


def pinned():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return lines, requirement_names(lines)


def test_every_import_is_a_declared_dependency():
    declared = requirement_names(PROJECT["project"]["dependencies"])
    used = {name.split(".")[0] for path in python_files(*ROOMS) for name in imports(path)} - {""}
    foreign = {name for name in used if name not in sys.stdlib_module_names and name not in (*ROOMS, "__future__")}
    undeclared = {name for name in foreign if normal(DISTRIBUTION.get(name, name)) not in declared}
    assert undeclared == {"torch"}  # in the one function that asks for the extra, see test_layering.py
    assert requirement_names(PROJECT["project"]["optional-dependencies"]["pth"]) == {"torch"}


def test_every_dependency_is_pinned_exactly():
    lines, names = pinned()
    assert all(re.match(r"[A-Za-z0-9._-]+==[0-9][^;\s]*( *; python_version [<>=]+ '3\.12')?$", line) for line in lines)
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = requirement_names([*PROJECT["project"]["dependencies"], *extras["test"], *extras["parity"]])
    assert wanted <= names, f"not in constraints.txt: {sorted(wanted - names)}"


def test_both_supported_versions_of_jax_are_pinned():
    lines, _ = pinned()
    assert {line[: len("jax==0.10")] for line in lines if line.startswith("jax==")} == {"jax==0.10", "jax==0.11"}
    assert "jax>=0.10,<0.12" in PROJECT["project"]["dependencies"]


def test_accelerators_and_tests_are_extras():
    assert {"tpu", "cuda12", "cuda13", "test"} <= PROJECT["project"]["optional-dependencies"].keys()
    assert PROJECT["project"]["requires-python"] == ">=3.11"


def test_the_package_is_typed_and_has_a_version():
    assert (ROOT / "wanjax/py.typed").exists()
    assert re.fullmatch(r"\d+\.\d+\.\d+", wanjax.__version__)


@pytest.mark.parametrize("target", ["setup", "demo", "test", "lint", "parity", "plans", "cluster"])
def test_the_makefile_has_the_documented_targets(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_gate_runs_tests_lint_and_parity():
    gate = ROOT / ".ci/run"
    assert gate.stat().st_mode & 0o111
    assert [line for line in gate.read_text().splitlines() if line.startswith("make")] == [
        "make test", "make lint", "make parity"]


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


def test_documents_name_existing_files():
    for document in ("README.md", "CONTRIBUTING.md"):
        named = re.findall(r"`((?:wanjax|experiments|configs|data_pipelines|tests|docs|benchmarks)/[\w./*-]*)`",
                           (ROOT / document).read_text())
        missing = [name for name in named if not list(ROOT.glob(name.rstrip("/")))]
        assert not missing, f"{document} names {missing}"
