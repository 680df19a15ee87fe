"""orbax checkpoints of a run: state, data position and resolved config, saved together and asynchronously.

One folder per step, with the parts ``params``, ``ema``, ``optimizer`` (arrays, laid out by ``wanjax.array_files``),
``position`` (of the data) and ``run`` (resolved config, expert, step): what sampling needs is read without touching the
optimizer. A part that the state does not have is left out. Every process writes what its devices hold, and reads what
they will hold; all share the folder.
"""
from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from wanjax import array_files, offload, partition
from wanjax import config as config_lib
from wanjax.file_digest import sampled_digest
from wanjax.models import rows
from wanjax.models.dit import WanDiT
from wanjax.models.shadow_head import KEY as SHADOW_HEAD
from wanjax.run_folder import is_remote, run_folder
from wanjax.train import EXPERTS, TrainState, network_rows

# what orbax and its storage raise on files that are missing, short or altered
UNREADABLE = (OSError, ValueError, KeyError, TypeError)
METADATA = 1_000_000  # bytes; what a checkpoint holds besides its arrays
WAITED = 5.0  # seconds that a save waits for the one before, from which it is said
COMMITTED = "commit_success.txt"  # orbax's mark of a whole checkpoint, where no folder can be renamed in one step


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message names it and the remedy."""


class Checkpoints:
    """The checkpoints of one expert.

    Args:
      folder: created where absent, of a file system that all processes share, or ``gs://...``; one subfolder per step.
      experiment: stored with every checkpoint.
      about: what else is stored with every checkpoint, of JSON types.
      expert: "high" or "low".
      keep: how many of the newest stay.

    Raises:
      FolderError: if checkpoints cannot be written to such a folder.
    """

    def __init__(self, folder: str | os.PathLike[str], *, experiment: config_lib.Experiment, expert: str, keep: int,
                 about: Mapping[str, Any] | None = None):
        self.folder = run_folder(folder)
        self._run = {**(about or {}), "experiment": config_lib.to_dict(experiment), "expert": expert}
        self._open = contextlib.ExitStack()
        self._open.enter_context(array_files.quiet())  # until the last save is whole: it ends in the background
        self._manager = ocp.training.Checkpointer(
            self.folder, context=array_files.context(),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            cleanup_tmp_directories=True)

    @property
    def latest(self) -> int | None:
        """Newest step on disk, or None."""
        newest = self._manager.latest
        return None if newest is None else newest.step

    @property
    def about(self) -> Mapping[str, Any] | None:
        """What the newest checkpoint that says something of itself says; None if there is none.

        Raises:
          CheckpointError: if checkpoints exist and none can be read.
        """
        steps = sorted((c.step for c in self._manager.checkpoints), reverse=True)
        return _newest_readable([self.folder / str(step) for step in steps])[0] if steps else None

    def restore(self, shapes: TrainState) -> tuple[TrainState, Any] | None:
        """The newest readable state, placed as ``shapes`` says (any mesh), and its data position; None if none exists.

        A checkpoint that cannot be read is named in a warning, set aside, and the one before it is tried.

        Raises:
          CheckpointError: if checkpoints exist and none can be read.
        """
        steps = sorted((c.step for c in self._manager.checkpoints), reverse=True)
        failures: list[tuple[int, Exception]] = []
        for step in steps:
            restored, problem = _load_everywhere(self.folder / str(step), {**_parts(shapes), "position": None})
            if problem is not None:
                failures.append((step, problem))
                logging.warning("checkpoint %s cannot be read (%s); going on from the one before",
                                self.folder / str(step), _first_line(problem))
                continue
            self._set_aside([step for step, _ in failures])
            optimizer = restored["optimizer"]
            return TrainState(optimizer["step"], restored["params"], restored.get("ema"), optimizer["state"]), \
                restored["position"]
        if failures:
            reasons = "\n".join(f"  step {step}: {_first_line(error)}" for step, error in failures)
            raise CheckpointError(f"none of the checkpoints in {self.folder} can be read:\n{reasons}\nGive a new "
                                  "--workdir, or move that folder away to start over")
        return None

    def save(self, step: int, state: TrainState, position: Any) -> None:
        """Starts writing a checkpoint in the background, after the one before it is whole.

        Returns when what the devices hold is in the hosts' memory, and state that lies there has been copied. (On the
        CPU the rest is there already and is not copied: the next step, which would overwrite it, takes other memory.)

        Raises:
          CheckpointError: if the disk has no room; what is there stays.
        """
        started = time.monotonic()
        self.wait()
        if (waited := time.monotonic() - started) > WAITED:
            logging.warning("the checkpoint of step %d waited %.0f s for the one before to be written: raise "
                            "config.train.checkpoint_every, or put the run on faster storage", step, waited)
        self._check_room(state)
        state = jax.tree.map(_kept_apart, state)
        options = array_files.context(_largest(state))
        options.checkpointables.registry = _handlers()
        with options:
            saved = self._manager.save_checkpointables_async(
                step, {**_parts(state), "position": position, "run": {**self._run, "step": step}}, force=True)
        if saved is None:
            raise CheckpointError(f"checkpoint {self.folder / str(step)} was not accepted for saving")

    def wait(self) -> None:
        """Blocks until the last save is whole on disk.

        Raises:
          CheckpointError: if it could not be written.
        """
        try:
            self._manager.wait()
        except (OSError, ValueError) as error:
            raise CheckpointError(f"the newest checkpoint in {self.folder} could not be written "
                                  f"({_first_line(error)}); earlier ones are untouched. Free disk space and launch "
                                  "again") from error

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Closes, after the last save is whole."""
        try:
            self.wait()
        except CheckpointError:
            if error is None:  # else the error that is on its way says what happened
                raise
        finally:
            with self._open, contextlib.suppress(OSError, ValueError):  # raised by wait() already
                self._manager.close()

    def _check_room(self, state: TrainState) -> None:
        if is_remote(self.folder):
            return
        # of all processes together, which share the disk; uncompressed, so that a save that passes also fits
        arrays = sum(x.nbytes for x in jax.tree.leaves(state))
        free, need = _of_the_first(shutil.disk_usage(self.folder).free), 1.05 * arrays + METADATA
        if free < need:
            raise CheckpointError(f"the disk of {self.folder} has {free / 1e6:.1f} MB free and a checkpoint takes "
                                  f"{need / 1e6:.1f} MB: nothing was written, the checkpoint of step {self.latest} is "
                                  "untouched. Free space and launch again: it goes on from there")

    def _set_aside(self, steps: list[int]) -> None:
        if not steps:
            return
        for step in steps if jax.process_index() == 0 else []:
            target = self.folder.parent / f"unreadable_{step}"
            if target.exists():
                target.rmtree()
            (self.folder / str(step)).rename(target)
        _everywhere(True)  # not before it is done
        self._manager.reload()


def _handlers() -> Any:
    """orbax's own, but for ``run``, which is one file instead of two for each of its numbers."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="run")
    return registry


def _parts(state: TrainState) -> dict[str, Any]:
    """The parts of a checkpoint that hold arrays."""
    parts = {"params": state.params, "ema": state.ema, "optimizer": {"step": state.step, "state": state.opt_state}}
    return {name: part for name, part in parts.items() if part is not None}


def _kept_apart(x: jax.Array) -> jax.Array:
    """The array, of one in host memory a copy: orbax writes such an array from where it lies, and the next step, which
    it is donated to, would meet a buffer in use. It takes the way over the device, which every platform has, one array
    at a time."""
    if x.sharding.memory_kind != offload.HOST:
        return x
    near = jax.device_put(x, x.sharding.with_memory_kind("device"))
    return jax.device_put(near, x.sharding).block_until_ready()


def _largest(tree: Any) -> int:
    """Bytes of the largest array, over all devices."""
    return max(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def _load(folder: epath.Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Parts of a checkpoint, of each array what this process's devices hold; waits for no other process.

    Raises:
      One of ``UNREADABLE``.
    """
    arrays = [x for x in jax.tree.leaves(wanted) if hasattr(x, "shape")]
    options = array_files.context(_largest(arrays) if arrays else None)
    own = jax.process_index()  # processes that wait for each other would wait for one that cannot read
    options.multiprocessing.active_processes, options.multiprocessing.primary_host = {own}, own
    with array_files.quiet(), options:
        return ocp.load_checkpointables(folder, wanted)


def _load_everywhere(folder: epath.Path, wanted: dict[str, Any]) -> tuple[dict[str, Any], Exception | None]:
    """As :func:`_load`, called by all processes: what was read, or what one of them met."""
    restored: dict[str, Any] = {}
    problem: Exception | None = None
    try:
        restored = _load(folder, wanted)
    except UNREADABLE as error:
        problem = error
    if not _everywhere(problem is None):
        return {}, problem or CheckpointError("another process cannot read it")
    return restored, None


def _everywhere(done: bool) -> bool:
    """Whether every process says so; waits for all of them."""
    return done if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.asarray(done))))


def _of_the_first(number: float) -> float:
    """What process 0 says, to 7 digits."""
    if jax.process_count() == 1:
        return number
    return float(multihost_utils.broadcast_one_to_all(np.asarray(number, np.float32)))


@dataclasses.dataclass(frozen=True)
class SavedExpert:
    """Weights of one expert in a checkpoint, not read yet.

    Attributes:
      expert: "high" or "low".
      folder: of the checkpoint.
      part: "ema" or "params", what of it is read.
      step: when it was saved.
      config: the experiment that made it.
      about: what else was stored with it.
    """

    expert: str
    folder: epath.Path
    part: str
    step: int
    config: config_lib.Experiment
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def has_head(self) -> bool:
        """Whether a shadow head was trained along."""
        return "shadow" in self.config.objective.active

    @property
    def fingerprint(self) -> str:
        """Tells these weights from others, wherever their folder lies, without reading them all."""
        root = self.folder / self.part
        files = []
        for description in root.glob("*/zarr.json"):  # one per array; of its pieces the first stands for all
            axes = len(json.loads(description.read_text())["shape"])
            files += [description, description.parent.joinpath("c", *["0"] * axes)]
        files = files or [file for file in root.rglob("*") if file.is_file()]  # an OCDBT database, of earlier versions
        return sampled_digest((str(file.relative_to(root)), file) for file in sorted(files))

    def read(self, places: Any = None) -> tuple[Any, Any]:
        """What was trained of the transformer, its parameters or factors of them (``config.lora``), and the parameters
        of its shadow head (None without one).

        Args:
          places: tree of shardings of the former; None for one device. The head goes to one device of the process.

        Raises:
          CheckpointError: if they cannot be read.
        """
        model = WanDiT(self.config.model)
        shapes = rows.shapes(network_rows(model, self.config.shadow_head(model), self.config.lora), "float32")
        alone = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        placed = jax.tree.map(lambda _: alone, shapes) | (places or {})
        abstract = partition.placed_shapes(shapes, placed)
        try:
            params = _load(self.folder, {self.part: abstract})[self.part]
        except UNREADABLE as error:
            others = sorted((int(p.name) for p in step_folders(self.folder.parent) if p != self.folder), reverse=True)
            instead = (f"give one of the others, such as {self.folder.parent / str(others[0])}" if others
                       else "there is no other one here")
            raise CheckpointError(f"checkpoint {self.folder} cannot be read ({_first_line(error)}): {instead}"
                                  ) from error
        return params, params.pop(SHADOW_HEAD, None)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's newest checkpoints hold for sampling.

    Attributes:
      config: the experiment that made it.
      experts: {"high": SavedExpert, "low": SavedExpert}, those that are there.
      description: one line that says what was found.
    """

    config: config_lib.Experiment
    experts: Mapping[str, SavedExpert]
    description: str


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a workdir, one expert's folder in it, or a checkpoint of one step."""
    return bool(_expert_checkpoints(run_folder(path)))


def open_run(path: str | os.PathLike[str], weights: str = "ema") -> Run:
    """Opens a workdir, an expert's folder, or one checkpoint; no weights are read yet.

    Args:
      path: the folder.
      weights: "ema" or "raw"; where a run keeps no average, "ema" means its parameters too.

    Raises:
      CheckpointError: if there is no readable checkpoint.
      ValueError: if ``weights`` is neither.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights = {weights!r}: expected 'ema' or 'raw'")
    found = _expert_checkpoints(run_folder(path))
    if not found:
        raise CheckpointError(f"{str(path)!r} holds no checkpoint: expected a --workdir of experiments.train, "
                              "its high/ or low/ folder, or the folder of one step")
    experts, said, apart = {}, [], ""
    for candidates in found:
        run, folder = _newest_readable(candidates)
        experiment, step = config_lib.from_dict(run["experiment"]), int(run["step"])
        about = {name: value for name, value in run.items() if name not in ("experiment", "expert", "step")}
        part = "ema" if weights == "ema" and experiment.optimizer.averaged else "params"
        experts[run["expert"]] = SavedExpert(run["expert"], folder, part, step, experiment, about)
        kinds = ["ema" if part == "ema" else "raw", *(["LoRA"] if experiment.lora.rank else [])]
        said.append(f"{run['expert']} expert at step {step} ({', '.join(kinds)})")
        if experts[run["expert"]].has_head:
            apart = "; without its shadow head, which sampling and other layouts have no use for"
    experiment = next(iter(experts.values())).config
    return Run(experiment, experts, f"wanjax run {experiment.name!r} in {path}: {', '.join(said)}{apart}")


def _newest_readable(folders: list[epath.Path]) -> tuple[Mapping[str, Any], epath.Path]:
    """What the newest checkpoint says of itself; one that says nothing is passed over with a warning."""
    failures = []
    for folder in folders:
        try:
            return _load(folder, {"run": None})["run"], folder
        except UNREADABLE as error:
            failures.append(f"  {folder}: {_first_line(error)}")
            logging.warning("checkpoint %s cannot be read (%s)", folder, _first_line(error))
    raise CheckpointError("no checkpoint can be read:\n" + "\n".join(failures))


def _expert_checkpoints(path: epath.Path) -> list[list[epath.Path]]:
    """Per expert found under ``path``: its checkpoint folders, newest first."""
    if (path / "_CHECKPOINT_METADATA").is_file():
        return [[path]]
    for folders in ([path / e for e in EXPERTS], [path]):
        found = []
        for folder in folders:
            steps = step_folders(folder / "checkpoints")
            if steps:
                found.append(sorted(steps, key=lambda p: int(p.name), reverse=True))
        if found:
            return found
    return []


def step_folders(folder: epath.Path) -> list[epath.Path]:
    """Folders of whole checkpoints, in no order."""
    return [step for step in folder.glob("*") if step.name.isdigit()
            and (not is_remote(folder) or (step / COMMITTED).exists())]


def _first_line(error: BaseException) -> str:
    """Of the first cause: what orbax says last is that none of its handlers could read it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
