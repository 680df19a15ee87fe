"""One folder per run: who may write in it, and for which config."""
from __future__ import annotations

import fcntl
import json
import os
import pathlib
from types import TracebackType

from wanjax import config as config_lib
from wanjax.checkpoint import step_folders
from wanjax.run_folder import is_remote, local_folder, run_folder
from wanjax.train_config import EXPERTS

# what may differ between two launches that continue one run
FREE = ("config.train.log_every", "config.train.checkpoint_every", "config.train.keep", "config.train.validate_every",
        "config.train.preview_every", "config.train.expert", "config.train.steps_",
        "config.train.batch_timeout", "config.train.profile_",
        "config.mesh.", "config.sample.", "config.data.data_dir",
        "config.data.cache_dir", "config.model.remat", "config.model.chunk_tokens", "config.model.attention",
        "config.model.sequence", "config.model.splash_", "config.optimizer.state_memory")


class WorkdirError(RuntimeError):
    """The folder cannot be used; the message says why and what to do."""


class Workdir:
    """Holds the locks on a run's folders and its resolved config (``config.json``).

    Args:
      path: of the run; ``gs://...`` for an object store.
      experiment: that is run.
      logs: folder of this machine for what grows line by line; None is ``path``. A lock lies there and in ``path``, but
        in no object store: of two machines with one ``gs://`` path nothing keeps the second from writing, too.

    Attributes:
      path, logs: as given.

    Raises:
      FolderError: if checkpoints cannot be written to ``path``, or logs not to ``logs``.
      WorkdirError: for an object store without ``logs``.

    Raises on entering:
      WorkdirError: if another process trains in the folder, if it holds checkpoints of another config, or if it cannot
        be written.
    """

    def __init__(self, path: str | os.PathLike[str], experiment: config_lib.Experiment,
                 logs: str | os.PathLike[str] | None = None):
        self.path, self._experiment = run_folder(path), experiment
        if logs is None and is_remote(path):
            raise WorkdirError(f"--workdir {os.fspath(path)!r} lies on an object store, where files cannot grow line "
                               "by line: give --logs, too, a folder of this machine for metrics, previews and profiles")
        self.logs = pathlib.Path(self.path) if logs is None else local_folder(logs, "--logs")
        self._locks: list[int] = []

    def __enter__(self) -> Workdir:
        try:
            for folder in (self.logs, self.path):
                folder.mkdir(parents=True, exist_ok=True)
            places = [self.logs] if is_remote(self.path) else [self.logs, pathlib.Path(self.path)]
            for place in sorted({place.resolve() for place in places}):
                self._hold(place)
            self._check_config()
        except WorkdirError:
            self._release()
            raise
        except OSError as error:
            self._release()
            raise WorkdirError(f"--workdir {str(self.path)!r} cannot be written ({error.strerror or error}): give "
                               "another folder") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._release()

    def _hold(self, place: pathlib.Path) -> None:
        lock = os.open(place / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        self._locks.append(lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = os.pread(lock, 64, 0).decode(errors="replace").strip()
            raise WorkdirError(f"{str(place)!r} is in use by process {other or 'unknown'}: wait for it, stop it, or "
                               "give another --workdir or --logs") from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)

    def _release(self) -> None:
        while self._locks:
            os.close(self._locks.pop())  # releases the lock

    def _begun(self) -> bool:
        """Whether anything was trained that would go on."""
        return any(step_folders(self.path / name / "checkpoints") for name in EXPERTS)

    def _check_config(self) -> None:
        file, new = self.path / "config.json", config_lib.to_dict(self._experiment)
        if file.exists() and self._begun():  # else a launch that failed over its config would forbid to correct it
            try:
                old = config_lib.completed(json.loads(file.read_text()))
            except json.JSONDecodeError as error:
                raise WorkdirError(f"{file} is damaged ({error}): move the folder away to start over") from error
            changed = {k: v for k, v in config_lib.differences(old, new).items() if not k.startswith(FREE)}
            if changed:
                lines = "\n".join(f"  {k}: {was!r} there, {now!r} asked for" for k, (was, now) in changed.items())
                raise WorkdirError(f"--workdir {str(self.path)!r} holds a run of another config:\n{lines}\nGive "
                                   "another --workdir, the old values, or config.train.init_from"
                                   " to start from its weights")
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(new, indent=1) + "\n")
        temporary.replace(file)
