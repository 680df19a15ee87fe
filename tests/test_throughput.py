"""The clock times steps and nothing else, and says what the devices waited for."""
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tests.test_train import Batches, lines, run
from wanjax import throughput
from wanjax.models.dit_config import DiTConfig
from wanjax.throughput import StepClock, Work

WORK = Work(tokens=1000, flops=4_000, peak=20_000.0)


class Loop:
    """A training loop on a clock of its own: devices that take ``device`` seconds, given steps one ahead."""

    def __init__(self, every=100, step=0):
        self.time, self.step, self.idle_from = 0.0, step, 0.0
        self.clock = StepClock("high expert", step, every, now=lambda: self.time)
        self.waiting = False

    def sleep(self, seconds):
        self.time += seconds

    def iterate(self, *, wait=0.0, device=1.0, compile=0.0, apart=None, timed=True):
        """A batch after ``wait``, a step given to the devices, the one before read; then ``apart``: {what: seconds}."""
        self.step += 1
        before = {"loss": SimpleNamespace(is_ready=lambda: self.time >= self.idle_from)} if self.waiting else None
        with self.clock.batch(before):
            self.sleep(wait)
        if compile:
            with self.clock.apart("compile"):
                self.sleep(compile)
        running = self.idle_from
        self.idle_from = max(self.idle_from, self.time) + device
        if self.waiting:
            self.read(self.step - 1, running, timed)
        self.waiting = True
        if apart:
            self.read(self.step, self.idle_from, timed)
            self.waiting = False
        for what, seconds in (apart or {}).items():
            with self.clock.apart(what):
                self.sleep(seconds)

    def read(self, step, finished, timed):
        self.time = max(self.time, finished)
        self.clock.read(step, timed)


def test_a_step_takes_what_the_devices_take_while_the_host_is_ahead():
    loop = Loop()
    for device in (1.0, *(0.1 * n for n in range(1, 11)), 5.0):  # the first is not timed, the last not read
        loop.iterate(device=device, wait=0.01)
    figures = loop.clock.window(WORK)
    times = 0.1 * np.arange(1, 11)
    assert figures["steps"] == 11 and figures["timed_steps"] == 10
    for name, value in (("p50", np.percentile(times, 50)), ("p90", np.percentile(times, 90)), ("max", 1.0),
                        ("mean", 0.55)):
        assert figures[f"step_seconds_{name}"] == pytest.approx(value), name
    assert figures["tokens_per_second"] == pytest.approx(1000 / 0.55)
    assert figures["model_flops_per_step"] == 4000
    assert figures["mfu"] == pytest.approx(4000 / (0.55 * 20_000))


def test_a_step_takes_what_the_host_takes_where_that_is_the_slower_side():
    loop = Loop()
    for _ in range(10):
        loop.iterate(device=0.2, wait=0.7)
    figures = loop.clock.window(WORK)
    assert figures["step_seconds_p50"] == pytest.approx(0.7)


def test_what_is_no_step_is_reported_apart_and_spoils_none():
    loop = Loop()
    loop.iterate(compile=60.0)
    for _ in range(4):
        loop.iterate()
    loop.iterate(apart={"validation": 7.0, "preview": 5.0, "checkpoint": 3.0})
    loop.iterate()
    loop.iterate(compile=30.0)  # a term of the objective comes in
    for _ in range(4):
        loop.iterate()
    loop.iterate(apart={"checkpoint": 2.0})
    figures = loop.clock.window(WORK)
    assert {name: value for name, value in figures.items() if name.endswith("_seconds") and value} == {
        "compile_seconds": 90.0, "validation_seconds": 7.0, "preview_seconds": 5.0, "checkpoint_seconds": 5.0}
    assert figures["steps"] == 13 and figures["timed_steps"] == 11  # not those during which it was compiled
    assert figures["step_seconds_max"] == pytest.approx(1.0)
    assert figures["seconds"] == pytest.approx(loop.time)


def test_steps_under_the_profiler_are_not_timed():
    loop = Loop()
    for n in range(8):
        loop.iterate(device=1.0 if n < 4 else 9.0, timed=n < 5)
    assert loop.clock.window(WORK)["step_seconds_max"] == 1.0


def test_a_wait_beside_a_running_step_is_no_stall(caplog):
    loop = Loop()
    for _ in range(10):
        loop.iterate(device=1.0, wait=0.5)
    figures = loop.clock.window(WORK)
    assert figures["data_wait"] > 0.4 and figures["data_stall"] == 0.0
    assert figures["step_seconds_max"] == pytest.approx(1.0)
    assert not caplog.records


def test_a_slow_input_pipeline_is_named_once_per_window(caplog):
    loop = Loop()
    for _ in range(10):
        loop.iterate(device=0.1, wait=0.9)
    figures = loop.clock.window(WORK)
    assert figures["data_wait"] == figures["data_stall"] > 0.9
    assert len(caplog.records) == 1
    for words in ("high expert: the input pipeline is slow", "steps 1-9", "0.90 s per step", "config.data.cache_dir"):
        assert words in caplog.text
    caplog.clear()
    for _ in range(10):
        loop.iterate(device=1.0, wait=0.05)
    loop.clock.window(WORK)
    assert not caplog.records


def test_a_few_milliseconds_are_not_worth_a_line(caplog):
    loop = Loop()
    for _ in range(10):
        loop.iterate(device=0.001, wait=0.009)
    assert loop.clock.window(WORK)["data_stall"] > 0.9
    assert not caplog.records


def test_after_a_save_the_devices_wait_for_the_next_batch():
    loop = Loop()
    for _ in range(2):
        loop.iterate(apart={"checkpoint": 0.5}, wait=0.5)
    figures = loop.clock.window(WORK)
    assert figures["data_stall"] == pytest.approx(0.5 / 2.5)  # of the second; the first starts the pipeline
    assert figures["step_seconds_max"] == pytest.approx(1.5)


def test_the_start_of_the_pipeline_is_not_its_speed(caplog):
    loop = Loop()
    loop.iterate(wait=50.0)
    for _ in range(3):
        loop.iterate()
    figures = loop.clock.window(WORK)
    assert figures["first_batch_seconds"] == 50.0 and figures["data_wait"] == figures["data_stall"] == 0.0
    assert not caplog.records


@pytest.mark.parametrize("saves", [set(), {9, 12}, {10, 20}, {11, 16, 26}])
def test_windows_hold_every_step_once(saves):
    loop, ends, count = Loop(every=5, step=7), [], 0
    for step in range(8, 31):
        loop.iterate(apart={"checkpoint": 1.0} if step in saves or step == 30 else None)
        if loop.clock.due:
            figures = loop.clock.window(WORK)
            count += figures["steps"]
            ends.append(loop.clock.step)
    assert [end // 5 for end in ends] == [2, 3, 4, 5, 6] and ends[-1] == 30
    assert count == 23


def test_a_save_says_how_long_it_held_the_loop():
    loop = Loop()
    for _ in range(99):
        loop.iterate()
    loop.iterate(apart={"validation": 40.0, "checkpoint": 1.0})
    assert loop.clock.save() == {"checkpoint_stall_seconds": 1.0, "checkpoint_stall": pytest.approx(1.0 / 100)}
    loop.iterate(apart={"checkpoint": 3.0})
    assert loop.clock.save() == {"checkpoint_stall_seconds": 3.0, "checkpoint_stall": pytest.approx(3.0 / 4)}


def devices(*kinds):
    return [SimpleNamespace(device_kind=kind) for kind in kinds]


def test_the_peak_is_that_of_all_devices_or_unknown():
    assert throughput.peak(devices(*["TPU v5p"] * 64)) == 64 * 459e12
    assert throughput.peak(devices("TPU7x", "TPU7x")) == 2307e12  # a chip is two devices
    for unknown in ("cpu", "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "TPU v99"):
        assert throughput.peak(devices("NVIDIA H100 80GB HBM3", unknown)) is None
    figures_of = StepClock("x", 0, 1, now=iter(range(10)).__next__)
    figures_of.read(1)
    figures_of.read(2)
    figures = figures_of.window(Work(1, 1, None))
    assert "mfu" not in figures and figures["tokens_per_second"] == 1.0


def test_the_work_of_a_step_counts_all_clips():
    config = DiTConfig(width=24, heads=2, layers=3, ffn=40)
    batch = {"latents": np.zeros((8, 3, 4, 6, 16)), "text": np.zeros((8, 7, 12))}
    work = throughput.work_of(config, batch, devices("TPU v6e", "TPU v6e"))
    assert work.tokens == 8 * 3 * 2 * 3 and work.peak == 2 * 918e12
    assert work.flops == 8 * 3 * throughput.flops.forward(config, 18, 7)


def throughput_lines(folder):
    return [json.loads(line) for line in (folder / "throughput.jsonl").read_text().splitlines()]


def test_the_loop_times_every_step_once_in_a_file_of_its_own(tmp_path):
    run(tmp_path, steps=7, every=3)
    windows = [line for line in throughput_lines(tmp_path) if "steps" in line]
    assert [line["step"] for line in windows] == [3, 4, 6, 7]
    assert sum(line["steps"] for line in windows) == 7
    assert all(0 < line["step_seconds_p50"] <= line["step_seconds_max"] < 60 for line in windows)
    assert windows[0]["compile_seconds"] > 0 and windows[0]["validation_seconds"] > 0
    assert all(line["tokens_per_second"] > 0 and "mfu" not in line for line in windows if line["timed_steps"])
    saves = [line for line in throughput_lines(tmp_path) if "checkpoint_stall_seconds" in line]
    assert [line["step"] for line in saves] == [3, 6, 7]
    clocks = {name for line in lines(tmp_path) for name in line if "second" in name or "data" in name}
    assert not clocks


class Slow(Batches):
    def __next__(self):
        if self.position:
            time.sleep(0.4)
        return super().__next__()


def test_the_loop_names_batches_that_come_late(tmp_path, caplog):
    run(tmp_path, steps=6, every=6, batches=Slow(), batch_timeout=0.1)
    windows = [line for line in throughput_lines(tmp_path) if "steps" in line]
    assert max(line["data_stall"] for line in windows) > 0.5
    assert "high expert: the input pipeline is slow" in caplog.text
    assert "high expert: the input pipeline is stalled: the batch of step 4" in caplog.text
