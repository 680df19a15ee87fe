"""The notebook runs from top to bottom on a run of a few steps, and its outputs stay small."""

import json
import os
import re

import nbclient
import nbformat
import pytest

from tests import launching, xla_flags

NOTEBOOK = launching.ROOT / "experiments/colab/evaluate_checkpoint.ipynb"
CAPTIONS = ["A room at sunset: light darkens and slides left.", "阴天:光照不变,镜头右摇。"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    root = tmp_path_factory.mktemp("colab")
    source = launching.small_data(root / "data")
    code, output = launching.finish(launching.command(root / "run", source, root / "cache", **{
        "train.steps_high": 2, "train.steps_low": 2}))
    assert code == 0, output
    return root / "run"


def with_values(**values):
    """The notebook with the settings that a user would change, set in the cells that define them."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for name, value in values.items():
        lines = re.compile(rf"^{name} = (\[.*?^\]|[^\n#]*)", re.MULTILINE | re.DOTALL)
        cell = next(c for c in notebook.cells if c.cell_type == "code" and lines.search(c.source))
        start, end = lines.search(cell.source).span()
        cell.source = f"{cell.source[:start]}{name} = {value!r}{cell.source[end:]}"
    return notebook


def run(notebook, folder, monkeypatch):
    paths = [str(launching.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("XLA_FLAGS", xla_flags.QUICK)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))


def test_it_samples_measures_and_shows(workdir, tmp_path, monkeypatch):
    notebook = with_values(CHECKPOINT=str(workdir), PROMPTS=CAPTIONS, CHANGES={"steps": 2})
    printed = run(notebook, tmp_path, monkeypatch)
    assert "wanjax run 'light_scenes_tiny'" in printed and "high expert at step 2" in printed
    assert "global_flicker" in printed and all(caption in printed for caption in CAPTIONS)
    measured = json.loads((tmp_path / "evaluation/report.json").read_text())
    assert [clip["prompt"] for clip in measured["clips"]] == CAPTIONS and not measured["unreadable"]
    shown = [out.data["text/html"] for cell in notebook.cells for out in cell.get("outputs", []) if "data" in out]
    assert len(shown) == 1 and "iframe" in shown[0] and len(nbformat.writes(notebook)) < 1 << 20


def test_it_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert "SOURCE = " in code[0].source and "CHECKPOINT = " in code[1].source
