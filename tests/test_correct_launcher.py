"""`experiments.correct`, and `experiments.sample --correct`: clips in, corrected clips out, sources untouched."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import correct as launcher
from experiments import sample
from tests.test_light_correct import exposure_of, gains, pan, roughness, seen
from wanjax import generate, video
from wanjax.experts import Expert
from wanjax.light.correct import correct
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.vae import VAEConfig, WanVAE
from wanjax.sample_config import SampleConfig

ROOT = Path(__file__).parent.parent
FACTS = {"prompt": "晨光 slides left", "seed": 7, "settings": {"steps": 40}}


def flickering(seed=0, frames=12):
    return np.rint(255 * seen(pan(frames, size=48), gains(frames, seed=seed))).astype(np.uint8)


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "clips"
    for seed, name in enumerate(("a", "below/b")):
        video.write(folder / f"{name}.mp4", flickering(seed), 24000 / 1001, FACTS)
    return folder


def test_the_command_corrects_what_it_can_and_names_what_it_cannot(clips, tmp_path):
    (clips / "broken.mp4").write_bytes((clips / "a.mp4").read_bytes()[:-300])
    before = {path: path.read_bytes() for path in clips.rglob("*.mp4")}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.correct", "--videos", f"{clips}/**/*.mp4", "--out", str(tmp_path / "out")],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "broken.mp4: cut short" in done.stderr and "1 of 3 clips" in done.stderr and "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in clips.rglob("*.mp4")} == before
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["a.mp4", "below/b.mp4"]
    assert "a.mp4: 12 frames, exposure moved by 0.0" in done.stdout


def test_a_corrected_clip_keeps_rate_and_facts_and_flickers_less(clips, tmp_path):
    assert launcher.run(f"{clips}/*.mp4", str(tmp_path / "out")) == 0
    source, result = (video.read(folder / "a.mp4") for folder in (clips, tmp_path / "out"))
    assert result.fps == source.fps and result.frames.shape == source.frames.shape
    assert {name: result.metadata[name] for name in FACTS} == FACTS
    assert result.metadata["corrected"]["period"] == 1.0 and result.metadata["corrected"]["mean_stops"] > 0.02
    assert set(result.metadata) == {*FACTS, "corrected"}
    rough = [roughness(exposure_of(clip.frames / np.float32(255))) for clip in (source, result)]
    assert rough[1] < 0.2 * rough[0]


def test_a_longer_period_takes_more_away(clips, tmp_path):
    for period in (0.5, 4.0):
        launcher.run(f"{clips}/a.mp4", str(tmp_path / str(period)), period)
    facts = [video.stream(tmp_path / str(period) / "a.mp4").metadata["corrected"] for period in (0.5, 4.0)]
    assert facts[0]["period"] == 0.5 and facts[0]["mean_stops"] < facts[1]["mean_stops"]


def test_no_clip_is_written_over_one_that_is_read(clips, capsys):
    before = (clips / "a.mp4").read_bytes()
    assert launcher.run(f"{clips}/a.mp4", str(clips)) == 1
    assert "a.mp4: not written over" in capsys.readouterr().err
    assert (clips / "a.mp4").read_bytes() == before
    (clips / "below" / "a.mp4").symlink_to(clips / "a.mp4")
    assert launcher.run(f"{clips}/a.mp4", str(clips / "below")) == 1
    assert (clips / "a.mp4").read_bytes() == before


def test_two_clips_of_one_name_are_not_written_to_one_file(clips, tmp_path, capsys):
    (clips / "a.mov").write_bytes((clips / "a.mp4").read_bytes())
    assert launcher.run(f"{clips}/a.m*", str(tmp_path / "out")) == 2
    assert "would be written to" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_clip_of_an_odd_size_says_what_to_do(clips, tmp_path, capsys, monkeypatch):
    odd = video.Stream(iter(flickering()[:, :47]), 8.0, {})
    monkeypatch.setattr(launcher.video, "stream", lambda path: odd._replace(frames=iter(flickering()[:, :47])))
    assert launcher.run(f"{clips}/a.mp4", str(tmp_path / "out")) == 1
    assert "pad to 48 x 48" in capsys.readouterr().err


def test_a_period_that_a_clip_cannot_show_names_the_clip(clips, tmp_path, capsys):
    assert launcher.run(f"{clips}/a.mp4", str(tmp_path / "out"), 0.1) == 1
    assert "a.mp4: period = 0.1 s: expected at least 0.4171 s" in capsys.readouterr().err


def test_nothing_to_correct_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file matches"):
        launcher.run(f"{tmp_path}/*.mp4", str(tmp_path / "out"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        launcher.run(f"{tmp_path}/file", str(tmp_path / "file"))


def test_the_comparison_with_deflicker_runs(tmp_path):
    still = tmp_path / "still.mp4"
    video.write(still, np.rint(255 * seen(pan(size=48))).astype(np.uint8), 8.0)
    done = subprocess.run(
        [sys.executable, "benchmarks/corrector.py", "--videos", str(still), "--seeds", "1", "--scenes", "1",
         "--out", str(tmp_path / "results.json")],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    clip, sunrise = results["clips"][0], results["sunrises"][0]
    assert clip["ours"]["removed"] > max(0.8, clip["default"]["removed"])
    assert 0.3 < clip["stillest"]["removed"] <= clip["best"]["removed"], "deflicker did its work"
    assert abs(sunrise["ours"] / sunrise["untouched"] - 1) < 0.02 < abs(sunrise["default"] / sunrise["untouched"] - 1)
    assert done.stdout.startswith("| clip | ours")


# -- after sampling ---------------------------------------------------------------------------------------


@pytest.fixture
def sampled(monkeypatch):
    """Stands in for the networks; counts how often they were at work."""
    asked = []

    def latents(pipeline, requests, **options):
        for request in requests:
            asked.append(request.seed)
            yield request.seed

    vae = WanVAE(VAEConfig(base_dim=4, z_dim=4, dim_mult=(1, 1, 1, 1), num_res_blocks=1, latents_mean=(0.0,) * 4,
                           latents_std=(1.0,) * 4))  # fmt: skip
    model = WanDiT(DiTConfig(width=24, heads=2, layers=1, ffn=32, in_channels=4, out_channels=4))
    pipeline = generate.Pipeline(
        experts={"high": Expert(model, None, "", "float32")}, vae=vae, vae_params={}, vae_fingerprint="",
        text=SimpleNamespace(fingerprint="bytes", length=8), config=SampleConfig(steps=2, boundary=0.0), frames=13,
        height=48, width=48, fps=8.0,
    )  # fmt: skip
    monkeypatch.setattr(generate, "latents", latents)
    monkeypatch.setattr(generate, "frames", lambda vae, params, seed: iter(flickering(seed)))
    monkeypatch.setattr(sample, "open_pipeline", lambda checkpoint, **options: pipeline)
    return asked


def test_sampling_with_correction_writes_the_corrected_clip_and_says_so(sampled, tmp_path, monkeypatch):
    given, write = [], video.write

    def keeps(path, frames, *more):
        given.extend(frames)
        write(path, given, *more)

    monkeypatch.setattr(video, "write", keeps)
    records = sample.sample("run", [sample.Line("dawn", 0)], str(tmp_path / "clip.mp4"), correct=True)
    stored = video.read(tmp_path / "clip.mp4")
    assert records[0]["settings"]["correct"] is True and stored.metadata["settings"] == records[0]["settings"]
    # what goes into the file: a last bit that differs between two measurements has the encoder choose otherwise
    expected, untouched = correct(flickering(), fps=8.0).astype(int), flickering().astype(int)
    assert np.abs(np.stack(given) - expected).max() <= 1 < np.abs(untouched - expected).mean()


def test_a_corrected_clip_is_not_an_uncorrected_one(sampled, tmp_path):
    for correction, made in ((False, 1), (False, 1), (True, 2), (True, 2), (False, 3)):
        records = sample.sample("run", [sample.Line("dawn", 0)], str(tmp_path), correct=correction)
        assert len(sampled) == made
        assert ("correct" in records[0]["settings"]) == correction


def test_the_flag_reaches_the_sampler():
    show = "from experiments import sample; sample.sample = lambda *a, **k: print(k['correct']); sample.entry()"
    done = subprocess.run(
        [sys.executable, "-c", show, "--checkpoint", "run", "--prompt", "dawn", "--out", "clip.mp4", "--correct"],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "True")
