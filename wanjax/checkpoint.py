"""orbax checkpoints of a run: state, data position and resolved config, saved together and asynchronously.

One folder per step, with the parts ``params``, ``ema`` (where an average is kept), ``optimizer`` (arrays),
``position`` (of the data) and ``run`` (resolved config, expert, step): what sampling needs is read without touching
the optimizer.
"""
from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from wanjax import config as config_lib
from wanjax.file_digest import sampled_digest
from wanjax.models import rows
from wanjax.models.dit import WanDiT
from wanjax.models.shadow_head import KEY as SHADOW_HEAD
from wanjax.train import EXPERTS, TrainState, network_rows

# what orbax and its storage raise on files that are missing, short or altered
UNREADABLE = (OSError, ValueError, KeyError, TypeError)
METADATA = 1_000_000  # bytes; what a checkpoint holds besides its arrays


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message names it and the remedy."""


class Checkpoints:
    """The checkpoints of one expert.

    Args:
      folder: created where absent; one subfolder per step.
      experiment: stored with every checkpoint.
      expert: "high" or "low".
      keep: how many of the newest stay.
    """

    def __init__(self, folder: str | os.PathLike[str], *, experiment: config_lib.Experiment, expert: str, keep: int):
        self.folder = pathlib.Path(folder).absolute()
        self._run = {"experiment": config_lib.to_dict(experiment), "expert": expert}
        self._manager = ocp.training.Checkpointer(
            self.folder, preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            cleanup_tmp_directories=True)

    @property
    def latest(self) -> int | None:
        """Newest step on disk, or None."""
        newest = self._manager.latest
        return None if newest is None else newest.step

    def restore(self, shapes: TrainState) -> tuple[TrainState, Any] | None:
        """The newest readable state, placed as ``shapes`` says (any mesh), and its data position; None if none exists.

        A checkpoint that cannot be read is named in a warning, set aside, and the one before it is tried.

        Raises:
          CheckpointError: if checkpoints exist and none can be read.
        """
        steps = sorted((c.step for c in self._manager.checkpoints), reverse=True)
        failures = []
        for step in steps:
            try:
                restored = self._manager.load_checkpointables(step, {**_parts(shapes), "position": None})
            except UNREADABLE as error:
                failures.append((step, error))
                logging.warning("checkpoint %s cannot be read (%s); going on from the one before",
                                self.folder / str(step), _first_line(error))
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

        Raises:
          CheckpointError: if the disk has no room; what is there stays.
        """
        self.wait()
        self._check_room(state)
        saved = self._manager.save_checkpointables_async(step, {
            **_parts(state), "position": position, "run": {**self._run, "step": step}}, force=True)
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
            with contextlib.suppress(OSError, ValueError):  # raised by wait() already
                self._manager.close()

    def _check_room(self, state: TrainState) -> None:
        # sums over this process's shards; uncompressed, so that a save that passes also fits
        arrays = sum(s.data.nbytes for x in jax.tree.leaves(state) for s in x.addressable_shards if s.replica_id == 0)
        free, need = shutil.disk_usage(self.folder).free, 1.05 * arrays + METADATA
        if free < need:
            raise CheckpointError(f"the disk of {self.folder} has {free / 1e6:.1f} MB free and a checkpoint takes "
                                  f"{need / 1e6:.1f} MB: nothing was written, the checkpoint of step {self.latest} is "
                                  "untouched. Free space and launch again: it goes on from there")

    def _set_aside(self, steps: list[int]) -> None:
        for step in steps:
            broken = self.folder / str(step)
            target = self.folder.parent / f"unreadable_{broken.name}"
            if target.exists():
                shutil.rmtree(target)
            os.replace(broken, target)
        if steps:
            self._manager.reload()


def _parts(state: TrainState) -> dict[str, Any]:
    """The arrays of a state by the part of a checkpoint that they are in; without an average there is none to save."""
    parts = {"params": state.params, "optimizer": {"step": state.step, "state": state.opt_state}}
    return parts if state.ema is None else {**parts, "ema": state.ema}


@dataclasses.dataclass(frozen=True)
class SavedExpert:
    """Weights of one expert in a checkpoint, not read yet.

    Attributes:
      folder: of the checkpoint.
      part: "ema" or "params", what of it is read.
      step: when it was saved.
      config: the experiment that made it.
    """

    folder: pathlib.Path
    part: str
    step: int
    config: config_lib.Experiment

    @property
    def has_head(self) -> bool:
        """Whether a shadow head was trained along."""
        return "shadow" in self.config.objective.active

    @property
    def fingerprint(self) -> str:
        """Tells these weights from others, wherever their folder lies, without reading them all."""
        root = self.folder / self.part
        return sampled_digest((str(file.relative_to(root)), file) for file in sorted(root.rglob("*")) if file.is_file())

    def read(self, places: Any = None) -> tuple[Any, Any]:
        """The transformer's parameters and those of its shadow head (None without one).

        Args:
          places: tree of shardings of the transformer's parameters; None for one device. The head goes to one device.

        Raises:
          CheckpointError: if they cannot be read.
        """
        model = WanDiT(self.config.model)
        shapes = rows.shapes(network_rows(model, self.config.shadow_head(model)), "float32")
        alone = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        placed = jax.tree.map(lambda _: alone, shapes) | (places or {})
        abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed)
        try:
            params = ocp.load_checkpointables(self.folder, {self.part: abstract})[self.part]
        except UNREADABLE as error:
            others = sorted((int(p.name) for p in self.folder.parent.glob("*") if p.name.isdigit()
                             and p != self.folder), reverse=True)
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
    return bool(_expert_checkpoints(pathlib.Path(path)))


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
    found = _expert_checkpoints(pathlib.Path(path))
    if not found:
        raise CheckpointError(f"{str(path)!r} holds no checkpoint: expected a --workdir of experiments.train, "
                              "its high/ or low/ folder, or the folder of one step")
    experts, said, apart = {}, [], ""
    for candidates in found:
        run, folder = _newest_readable(candidates)
        experiment, step = config_lib.from_dict(run["experiment"]), int(run["step"])
        part = "ema" if weights == "ema" and experiment.optimizer.averaged else "params"
        experts[run["expert"]] = SavedExpert(folder, part, step, experiment)
        said.append(f"{run['expert']} expert at step {step} ({'ema' if part == 'ema' else 'raw'})")
        if experts[run["expert"]].has_head:
            apart = "; without its shadow head, which sampling and other layouts have no use for"
    experiment = next(iter(experts.values())).config
    return Run(experiment, experts, f"wanjax run {experiment.name!r} in {path}: {', '.join(said)}{apart}")


def _newest_readable(folders: list[pathlib.Path]) -> tuple[Mapping[str, Any], pathlib.Path]:
    """What the newest checkpoint says of itself; one that says nothing is passed over with a warning."""
    failures = []
    for folder in folders:
        try:
            return ocp.load_checkpointables(folder, {"run": None})["run"], folder
        except UNREADABLE as error:
            failures.append(f"  {folder}: {_first_line(error)}")
            logging.warning("checkpoint %s cannot be read (%s)", folder, _first_line(error))
    raise CheckpointError("no checkpoint can be read:\n" + "\n".join(failures))


def _expert_checkpoints(path: pathlib.Path) -> list[list[pathlib.Path]]:
    """Per expert found under ``path``: its checkpoint folders, newest first."""
    path = path.absolute()
    if (path / "_CHECKPOINT_METADATA").is_file():
        return [[path]]
    for folders in ([path / e for e in EXPERTS], [path]):
        found = []
        for folder in folders:
            steps = [p for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]
            if steps:
                found.append(sorted(steps, key=lambda p: int(p.name), reverse=True))
        if found:
            return found
    return []


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
