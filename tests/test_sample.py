"""Statements about `experiments.sample` and what it opens: runs, releases, prompt files, clips made once."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import signal
import sys
import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import sample as launcher
from tests import forked
from tests.fake_store import clusters, together
from tests.tiny_release import DIT, QUICK, randomised, write_index, write_release, write_run
from wanjax import checkpoint, generate, hub, partition, pipeline, video
from wanjax.cluster import ClusterError
from wanjax.denoise import Execution, Step
from wanjax.models.dit import WanDiT
from wanjax.sample_config import SampleConfig
from wanjax.stop import Stopped, StopRequests

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of both experts with random weights, as the trainer leaves it."""
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A pipeline in the diffusers layout with random weights."""
    return write_release(tmp_path_factory.mktemp("release"))


class Painter:
    """Stands in for the networks: a clip is grey of its seed's brightness; remembers what it was asked for."""

    def __init__(self, stop_after=None):
        self.asked, self.options, self.stop_after = [], {}, stop_after

    def latents(self, pipeline, requests, **options):
        self.options = options
        options["on_ready"]()
        for number, request in enumerate(requests):
            if number == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append((request.prompt, request.seed))
            yield pipeline, request.seed

    def frames(self, vae, params, latents):
        pipeline, seed = latents
        for _ in range(pipeline.frames):
            yield np.full((pipeline.height, pipeline.width, 3), 20 * seed % 256, np.uint8)

    def stand_in(self, monkeypatch):
        monkeypatch.setattr(generate, "latents", self.latents)
        monkeypatch.setattr(generate, "frames", self.frames)


@pytest.fixture(scope="module")
def opened_once():
    """`open_pipeline`, which need not open the same run for every test anew."""
    return functools.cache(pipeline.open_pipeline)


@pytest.fixture
def painter(monkeypatch, opened_once):
    painter = Painter()
    painter.stand_in(monkeypatch)
    monkeypatch.setattr(launcher, "open_pipeline", opened_once)
    return painter


def lines(*prompts):
    return [launcher.Line(prompt, seed) for seed, prompt in enumerate(prompts)]


def params_of(opened, name):
    expert = opened.experts[name]
    return expert.read(expert.places())


def records(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


# -- the command ------------------------------------------------------------------------------------------


def command(*arguments):
    return forked.run([sys.executable, "-m", "experiments.sample", *map(str, arguments)])


def test_the_command_makes_clips_that_can_be_made_again(workdir, tmp_path):
    asked = [{"prompt": "the sun rises", "family": "sunrise_room"}]
    asked += [{"prompt": "太阳落下", "seed": 41, "truth": {"a": [1]}}, {"prompt": "the sun rises", "seed": 5}]
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "samples"
    prompts.write_text("".join(json.dumps(one) + "\n" for one in asked))
    done = command("--checkpoint", workdir, "--prompts", prompts, "--out", out, "--batch", 2, "--seed", 5)
    assert done.returncode == 0, done.stderr
    assert "high expert at step 7" in done.stdout and "low expert at step 7" in done.stdout and "(ema)" in done.stdout
    assert "clip_000.mp4  seed 5  the sun rises" in done.stdout and "clip_001.mp4  seed 41" in done.stdout
    assert "s/step" in done.stderr
    first, second, again = records(out)
    assert first["family"] == "sunrise_room" and second["truth"] == {"a": [1]} and second["prompt"] == "太阳落下"
    assert first["settings"]["solver"] == "euler" and first["settings"]["frames"] == 5
    clips = [video.read(out / record["file"]) for record in (first, second, again)]
    for record, clip in zip((first, second, again), clips, strict=True):
        assert clip.frames.shape == (5, 32, 32, 3) and clip.fps == 8.0
        assert clip.metadata == {name: record[name] for name in ("prompt", "seed", "settings", "checkpoint")}
    # the same prompt, seed and settings in another batch, beside another clip
    apart = lambda a, b: np.abs(a.frames.astype(int) - b.frames).max()
    assert apart(clips[0], clips[2]) <= 2 < apart(clips[0], clips[1])


def test_a_mistake_gives_one_line_and_a_failing_exit(tmp_path):
    done = command("--checkpoint", tmp_path / "nowhere", "--prompt", "dawn", "--out", tmp_path / "clip.mp4")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"error: '{tmp_path / 'nowhere'}' does not exist"
    assert not (tmp_path / "clip.mp4").exists()


# -- clips made once --------------------------------------------------------------------------------------


def test_finished_clips_are_kept_and_the_others_are_made(workdir, tmp_path, painter, capsys):
    launcher.sample(str(workdir), lines("a", "b", "c"), str(tmp_path))
    (tmp_path / "clip_001.mp4").unlink()
    (tmp_path / "clip_002.mp4").write_bytes((tmp_path / "clip_002.mp4").read_bytes()[:500])
    painter.asked.clear()
    launcher.sample(str(workdir), lines("a", "b", "c"), str(tmp_path), execution=Execution(batch=2))
    assert painter.asked == [("b", 1), ("c", 2)]
    assert "1 of 3 clips are there already" in capsys.readouterr().out
    assert [record["prompt"] for record in records(tmp_path)] == ["a", "b", "c"]
    painter.asked.clear()
    launcher.sample(str(workdir), lines("a", "b", "c"), str(tmp_path))
    assert painter.asked == []


@pytest.mark.parametrize("change", [{"weights": "raw"}, {"changes": {"steps": 3}}, {"changes": {"fps": 16.0}}])
def test_clips_of_other_weights_or_settings_are_made_anew(workdir, tmp_path, painter, change):
    launcher.sample(str(workdir), lines("a"), str(tmp_path))
    launcher.sample(str(workdir), lines("a"), str(tmp_path), **change)
    assert painter.asked == [("a", 0), ("a", 0)]


def test_an_interrupted_call_leaves_a_record_of_every_finished_clip(workdir, tmp_path, painter, monkeypatch):
    Painter(stop_after=1).stand_in(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        launcher.sample(str(workdir), lines("a", "b"), str(tmp_path))
    assert [record["file"] for record in records(tmp_path)] == ["clip_000.mp4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip_000.mp4", "samples.jsonl"]


def test_a_request_to_stop_ends_the_command_and_the_next_one_goes_on(workdir, tmp_path):
    arguments = ["--checkpoint", workdir, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "clips",
                 "--stopped_code=75", "--steps=4"]  # fmt: skip
    (tmp_path / "prompts.txt").write_text("dawn\n" * 200)
    running = forked.Command([sys.executable, "-m", "experiments.sample", *map(str, arguments)], os.environ)
    while not (tmp_path / "clips/samples.jsonl").exists() and running.poll() is None:
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    said, _ = running.communicate()
    assert (running.returncode, said.splitlines()[-1]) == (75, f"stopped; {launcher.KEPT}")
    clips = sorted(path.name for path in (tmp_path / "clips").glob("*.mp4"))
    assert 0 < len(clips) < 200 and not list((tmp_path / "clips").glob(".*"))
    assert [one["file"] for one in records(tmp_path / "clips")] in (clips, clips[:-1])  # it may have hit in between


def test_one_prompt_may_go_to_one_file(workdir, tmp_path, painter, capsys):
    launcher.sample(str(workdir), lines("a"), str(tmp_path / "new" / "dawn.mp4"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["dawn.mp4"]
    launcher.sample(str(workdir), lines("a"), str(tmp_path / "new" / "dawn.mp4"))
    assert len(painter.asked) == 1


def test_clips_of_an_earlier_longer_list_are_pointed_out(workdir, tmp_path, painter, capsys):
    launcher.sample(str(workdir), lines("a", "b"), str(tmp_path))
    launcher.sample(str(workdir), lines("a"), str(tmp_path))
    assert "1 other clips" in capsys.readouterr().out and len(records(tmp_path)) == 1


@pytest.mark.parametrize(
    "out,prompts,message",
    [
        ("clip.mp4", "ab", "but there are 2 prompts"),
        ("file", "a", "is a file"),
        ("folder.mp4", "a", "is a folder"),
        ("clip.avi", "a", "clip.avi': clips are written as .mp4"),
        ("clip.MP4", "a", "give a name that ends in .mp4"),
    ],
)
def test_an_output_that_cannot_hold_the_clips_is_refused(tmp_path, out, prompts, message):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(ValueError, match=message):
        launcher.sample("unused", lines(*prompts), str(tmp_path / out))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"steps": 0}, "steps = 0"),
        ({"frames": 6}, "frames = 6: the codec takes 4n \\+ 1"),
        ({"negative_prompt": "dark"}, "negative_prompt would do nothing"),
        ({"boundary": 0.0, "guidance_low": 2.0}, "guidance_low would do nothing"),
        ({"fps": 0.0}, "fps = 0.0"),
        ({"sheft": 5.0}, "sheft: expected settings among solver"),
    ],
)
def test_a_setting_that_is_wrong_or_would_do_nothing_is_refused(
    workdir, tmp_path, monkeypatch, opened_once, changes, message
):
    monkeypatch.setattr(launcher, "open_pipeline", opened_once)
    with pytest.raises(ValueError, match=message):
        launcher.sample(str(workdir), lines("a"), str(tmp_path), changes=changes)
    assert not list(tmp_path.iterdir())


# -- several processes ------------------------------------------------------------------------------------


def sampled_by_two(workdir, out, asked=("a", "b"), mesh=True, **options):
    """Two processes, as threads that share all devices and a coordination service; `benchmarks.cluster_sampling` has
    real ones."""
    mesh = partition.make_mesh({"seq": -1}) if mesh else None
    # one after the other: transformers cannot be imported by two threads at once
    launcher.open_pipeline(str(workdir), weights="ema", mesh=mesh, text_cache=None)
    return together(*[
        lambda one=one: launcher.sample(str(workdir), lines(*asked[: 2 + one.process * (len(asked) - 2)]), str(out),
                                        mesh=mesh, cluster=one, **options)
        for one in clusters(2)
    ])  # fmt: skip


@pytest.mark.parametrize("correct", [False, True])
def test_of_several_processes_one_writes_and_speaks_and_all_decode(
    workdir, tmp_path, painter, monkeypatch, capsys, correct
):
    writers, decoded, write, frames = [], [], video.write, generate.frames
    monkeypatch.setattr(video, "write", lambda path, *rest: (writers.append(threading.get_ident()), write(path, *rest)))
    monkeypatch.setattr(generate, "frames", lambda *given: decoded.append(threading.get_ident()) or frames(*given))
    first, second = sampled_by_two(workdir, tmp_path, correct=correct)
    assert first == second == records(tmp_path) and [one["file"] for one in first] == ["clip_000.mp4", "clip_001.mp4"]
    assert len(writers) == 2 and len(set(writers)) == 1
    # as often by the one that writes as by the other: their devices decode together
    assert sorted(decoded.count(one) for one in set(decoded)) == [4, 4] if correct else [2, 2]
    assert sorted(painter.asked) == [("a", 0), ("a", 0), ("b", 1), ("b", 1)]
    assert capsys.readouterr().out.count("2 clips in ") == 1
    (tmp_path / "clip_000.mp4").unlink()
    painter.asked.clear()
    assert sampled_by_two(workdir, tmp_path, correct=correct) == [first, second]
    assert painter.asked == [("a", 0), ("a", 0)]  # what is there is known to both


def test_processes_that_mean_different_clips_stop_before_any_is_made(workdir, tmp_path, painter):
    errors = sampled_by_two(workdir, tmp_path / "a", asked=("a", "b", "c"))
    assert [type(error) for error in errors] == [ClusterError] * 2 and str(errors[0]) == str(errors[1])
    assert "do not agree on what to sample:\n  prompts and seeds: " in str(errors[0])
    errors = sampled_by_two(workdir, tmp_path / "a", changes={"frames": 6})
    assert {str(error) for error in errors} == {"frames = 6: the codec takes 4n + 1 frames; use 5 or 9"}
    errors = sampled_by_two(workdir, tmp_path / "b", mesh=False)
    assert [type(error) for error in errors] == [ClusterError] * 2
    assert str(errors[0]).startswith("2 processes sample on one mesh of all their 8 devices: give --mesh")
    assert painter.asked == [] and not list(tmp_path.glob("*/*"))


class AskedToStop(StopRequests):
    """No signal reaches the threads that stand for processes: the second question of each is answered with yes."""

    def __init__(self):
        super().__init__()
        self.questions = 0

    def __call__(self):
        self.questions += 1
        return self.questions == 2


def test_processes_stop_after_the_same_step_and_go_on_with_what_is_missing(workdir, tmp_path, painter, monkeypatch):
    def latents(pipeline, requests, *, on_step, **options):
        for number, made in enumerate(painter.latents(pipeline, requests, **options), start=1):
            on_step(Step("high", number, len(requests), 0.0))
            yield made

    monkeypatch.setattr(generate, "latents", latents)
    monkeypatch.setattr(launcher, "StopRequests", AskedToStop)
    errors = sampled_by_two(workdir, tmp_path)
    assert [(type(error), str(error)) for error in errors] == [(Stopped, f"stopped after step 2 of 2; {launcher.KEPT}")
                                                               ] * 2  # fmt: skip
    assert [one["file"] for one in records(tmp_path)] == ["clip_000.mp4"]
    painter.asked.clear()
    assert sampled_by_two(workdir, tmp_path)[0] == records(tmp_path)
    assert painter.asked == [("b", 1), ("b", 1)]


def test_what_process_0_cannot_write_fails_on_all(workdir, tmp_path, painter):
    (tmp_path / "file").touch()
    errors = sampled_by_two(workdir, tmp_path / "file")
    assert [type(error) for error in errors] == [ClusterError] * 2 and "is a file" in str(errors[1])


# -- devices and memory -----------------------------------------------------------------------------------


def test_many_devices_make_the_clips_that_one_makes(release, tmp_path):
    changes = QUICK | {"frames": 5, "height": 48, "width": 32}  # rows that do not divide over the devices
    for name, mesh in (("one", None), ("many", partition.make_mesh({"fsdp": 2, "seq": 2, "tensor": 2}))):
        launcher.sample(
            str(release), lines("dawn", "dusk"), str(tmp_path / name), changes=changes, execution=Execution(batch=2),
            mesh=mesh,
        )  # fmt: skip
    for i in range(2):
        one, many = (video.read(tmp_path / name / f"clip_00{i}.mp4").frames.astype(int) for name in ("one", "many"))
        assert one.std() > 5
        assert np.abs(one - many).max() <= 2


def test_more_frames_than_the_checkpoint_was_made_for_are_warned_of(workdir, tmp_path, painter, capsys):
    launcher.sample(str(workdir), lines("a"), str(tmp_path / "longer"), changes={"frames": 9})
    assert "warning: 9 frames, made for 5" in capsys.readouterr().out
    launcher.sample(str(workdir), lines("a"), str(tmp_path / "same"), changes={"frames": 5})
    told = capsys.readouterr().out
    assert "warning" not in told and "estimate: 8 tokens a clip" in told


def test_the_way_in_which_work_is_laid_out_reaches_the_sampler(workdir, tmp_path, painter):
    execution = Execution(2, "one", "two")
    launcher.sample(str(workdir), lines("a"), str(tmp_path), execution=execution)
    assert painter.options["execution"] == execution


@pytest.mark.parametrize("text", ["seq", "seq=", "seq=two", "rows=8", "seq=1,seq=1"])
def test_a_mesh_that_is_none_is_named(text):
    with pytest.raises(ValueError, match="mesh"):
        launcher._mesh(text)


def test_prompts_of_a_release_are_embedded_once_and_kept(release, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    options = {"changes": QUICK | {"frames": 5, "height": 32, "width": 32}, "text_cache": cache}
    launcher.sample(str(release), lines("dawn"), str(tmp_path / "a"), **options)
    assert len(list(cache.iterdir())) == 2  # the prompt and the empty negative prompt
    monkeypatch.setattr(hub, "load_text_encoder", lambda *_, **__: pytest.fail("the encoder was opened"))
    launcher.sample(str(release), lines("dawn"), str(tmp_path / "b"), **options)
    a, b = (video.read(tmp_path / name / "clip_000.mp4").frames for name in "ab")
    np.testing.assert_array_equal(a, b)


# -- images -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image_release(release, tmp_path_factory):
    """The release with transformers that read an image."""
    folder = tmp_path_factory.mktemp("images") / "release"
    shutil.copytree(release, folder)
    config = dataclasses.replace(DIT, in_channels=4 + 4 + 4)
    for seed, part in enumerate(("transformer", "transformer_2")):
        shutil.rmtree(folder / part)
        hub.save_dit(folder / part, WanDiT(config), randomised(WanDiT(config), seed, 0.15))
    for i, size in enumerate(((48, 96), (96, 192), (64, 64))):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)).save(
            folder / f"{i}.png"
        )
    return folder


SMALL_AREA = {"frames": 5, "height": 32, "width": 64}


def test_the_command_starts_a_clip_from_an_image(image_release, tmp_path):
    flags = [f"--{name}={value}" for name, value in QUICK.items()]
    shutil.copy(image_release / "0.png", tmp_path / "room.png")
    arguments = ["--checkpoint", image_release, "--prompt", "dawn", "--frames", 5, "--height", 32, "--width", 64,
                 "--image", tmp_path / "room.png", *flags]  # fmt: skip
    done = command(*arguments, "--out", tmp_path / "a.mp4")
    assert done.returncode == 0, done.stderr
    stored = video.read(tmp_path / "a.mp4")
    digest = hashlib.sha256((tmp_path / "room.png").read_bytes()).hexdigest()
    assert stored.metadata["images"] == {"image": {"file": "room.png", "sha256": digest}}
    with pytest.raises(ValueError, match="needs an image"):
        launcher.sample(str(image_release), lines("dawn"), str(tmp_path / "b.mp4"), changes=QUICK)
    assert not (tmp_path / "b.mp4").exists()


def test_a_clip_of_another_image_is_another_clip(image_release, tmp_path, painter, monkeypatch):
    monkeypatch.setattr(launcher, "open_pipeline", pipeline.open_pipeline)
    made = lambda *files: launcher.sample(
        str(image_release), [launcher.Line("a", 0, *(image_release / file for file in files))], str(tmp_path),
        changes=QUICK | SMALL_AREA,
    )  # fmt: skip
    for files, count in ((["0.png"], 1), (["0.png"], 1), (["1.png"], 2), (["1.png", "0.png"], 3)):
        made(*files)
        assert len(painter.asked) == count


def test_a_clip_takes_the_shape_of_its_image(image_release, tmp_path, painter, monkeypatch, capsys):
    monkeypatch.setattr(launcher, "open_pipeline", pipeline.open_pipeline)
    (tmp_path / "in").mkdir()
    for name in ("0.png", "1.png", "2.png"):
        shutil.copy(image_release / name, tmp_path / "in")
    prompts = tmp_path / "in" / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": "a", "image": f"{i}.png"}) + "\n" for i in (0, 1)))
    records = launcher.sample(str(image_release), launcher.read_prompts(prompts, 0), str(tmp_path / "out"),
                              changes=QUICK | {"frames": 1})  # fmt: skip
    settings = records[0]["settings"]
    assert abs(settings["width"] - 2 * settings["height"]) <= 16  # a step of the codec and the patches
    assert 0.9 < settings["width"] * settings["height"] / 480 / 832 <= 1
    prompts.write_text("".join(json.dumps({"prompt": "a", "image": f"{i}.png"}) + "\n" for i in (0, 2)))
    with pytest.raises(ValueError, match="different shapes"):
        launcher.sample(str(image_release), launcher.read_prompts(prompts, 0), str(tmp_path / "out"))
    prompts.write_text('{"prompt": "a", "image": "absent.png"}')
    with pytest.raises(FileNotFoundError, match="absent.png"):
        launcher.sample(str(image_release), launcher.read_prompts(prompts, 0), str(tmp_path / "out"))


# -- what is opened ---------------------------------------------------------------------------------------


def test_a_run_opens_whole_by_expert_and_by_step(workdir, opened_once):
    whole = opened_once(str(workdir), weights="ema")
    assert set(whole.experts) == {"high", "low"} and whole.latent_shape == (2, 4, 4, 4)
    for path in (workdir / "high", workdir / "high" / "checkpoints" / "7"):
        assert set(pipeline.open_pipeline(path).experts) == {"high"}
    raw = opened_once(str(workdir), weights="raw")
    assert raw.fingerprint != whole.fingerprint and "(raw)" in raw.description
    averaged = jax.tree.map(lambda leaf: leaf * 0.9, params_of(raw, "high"))
    jax.tree.map(np.testing.assert_allclose, params_of(whole, "high"), averaged)


def test_a_release_opens_with_the_settings_of_its_family(release):
    opened = pipeline.open_pipeline(release)
    assert set(opened.experts) == {"high", "low"} and "two experts, boundary 0.9" in opened.description
    assert opened.config == SampleConfig(boundary=0.9)
    assert (opened.frames, opened.height, opened.width, opened.fps) == (81, 480, 832, 16.0)
    assert opened.text.length == 512 and opened.text.cache is None and opened.kind == "t2v"
    expected = randomised(WanDiT(DIT), 0, 0.15)  # transformer/ is the high-noise expert
    jax.tree.map(np.testing.assert_array_equal, params_of(opened, "high"), expected)
    with pytest.raises(ValueError, match="one set of weights"):
        pipeline.open_pipeline(release, weights="raw")


def test_a_release_with_one_transformer_gives_it_every_step(release):
    write_index(release, boundary_ratio=None, transformer_2=0)
    try:
        opened = pipeline.open_pipeline(release)
        assert set(opened.experts) == {"high"} and opened.config.expert_steps == {"high": 50, "low": 0}
        write_index(release, boundary_ratio=None)
        with pytest.raises(ValueError, match="no boundary_ratio"):
            pipeline.open_pipeline(release)
        write_index(release, boundary_ratio=0.9, vae=0)
        with pytest.raises(ValueError, match="has no vae"):
            pipeline.open_pipeline(release)
    finally:
        write_index(release, boundary_ratio=0.9)


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        pipeline.open_pipeline(tmp_path / "nowhere")
    with pytest.raises(checkpoint.CheckpointError, match=tmp_path.name):
        pipeline.open_pipeline(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="one network"):
        pipeline.open_pipeline(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        pipeline.open_pipeline(tmp_path / "model.safetensors")
    (tmp_path / "high_noise_model").mkdir()
    with pytest.raises(ValueError, match="official layout.*has no vae, text_encoder, tokenizer"):
        pipeline.open_pipeline(tmp_path)
    with pytest.raises(ValueError, match="weights = 'best'"):
        pipeline.open_pipeline(tmp_path, weights="best")
