"""Commands in processes forked off one that has their libraries imported, which takes two seconds of a processor.

What is forked is a process of its own in all that a test looks at: the launcher's module is imported there, as
``__main__``; arguments, environment, output, signals, exit code and what runs at exit are those of ``python -m``. Only
what libraries read while they are imported cannot be another for it. Every launcher is started by a new interpreter,
too: tests/test_showcase.py does, or the only test that runs it.
"""
from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pathlib
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).parents[1]
# what several launchers import, from other projects and from wanjax; they themselves are imported by what is forked
LIBRARIES = ("av", "jax.experimental.topologies", "ml_collections.config_flags", "scipy.ndimage", "tensorboardX",
             "transformers", "data_pipelines.encode", "wanjax.convert", "wanjax.pipeline", "wanjax.plan_search",
             "wanjax.preflight", "wanjax.preview", "wanjax.run_log", "wanjax.train")  # fmt: skip
CPU = {"JAX_PLATFORMS": "cpu"}
AT_IMPORT = ("HF_", "JAX_", "PYTHON")  # prefixes of variables that are read then


class Command:
    """A started command, with what tests use of :class:`subprocess.Popen`; its output is kept in files."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str], merged: bool = False) -> None:
        """``arguments``: the interpreter of this process, ``-m``, a module and the module's arguments; ``merged``:
        what is written to stderr goes to stdout."""
        if list(arguments[:2]) != [sys.executable, "-m"]:
            raise ValueError(f"a forked command is {sys.executable} -m MODULE ..., not {' '.join(arguments[:3])}")
        requests, had = _server()
        env = {**env, **CPU}
        changed = {name for name in {*had, *env} if name.startswith(AT_IMPORT) and had.get(name) != env.get(name)}
        if changed:
            raise ValueError(f"{', '.join(sorted(changed))}: read when libraries are imported; use subprocess.run")
        self.args, self.returncode = list(arguments), None
        self._out = tempfile.TemporaryFile()
        self._err = self._out if merged else tempfile.TemporaryFile()
        status, theirs = os.pipe()
        self._status = open(status, "rb")
        socket.send_fds(requests, [b"\n"], [self._out.fileno(), self._err.fileno(), theirs])
        requests.sendall(json.dumps({"arguments": arguments[2:], "env": env}).encode() + b"\n")
        os.close(theirs)
        self.pid = int(self._status.readline())

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._status.readline())
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        texts = []
        for file in dict.fromkeys((self._out, self._err)):
            file.seek(0)
            texts.append(file.read().decode())
            file.close()
        self._status.close()
        return texts[0], texts[-1] if len(texts) == 2 else ""


def run(arguments: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 300
        ) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, in the project's folder, as ``subprocess.run`` does that captures text."""
    command = Command(arguments, os.environ if env is None else env)
    try:
        output, errors = command.communicate(timeout)
    except subprocess.TimeoutExpired:
        command.send_signal(signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(command.args, command.returncode, output, errors)


# -- the process that is forked ---------------------------------------------------------------------------


@functools.cache
def _server() -> tuple[socket.socket, dict[str, str]]:
    """Where to ask it, and the environment in which it imported the libraries."""
    ours, theirs = socket.socketpair()
    environment = {**os.environ, **CPU}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forked", str(theirs.fileno())], cwd=ROOT, pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        env=environment | {"OPENBLAS_NUM_THREADS": "1"},  # a process that is forked should have one thread
    )  # fmt: skip
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours, environment


def serve(requests: socket.socket) -> None:
    """Forks a process for every request, until the tests end."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # else the collector would write to, and so copy, every page that is shared
    while True:
        more, files, _, _ = socket.recv_fds(requests, 1, 3)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # those that have ended since; their time is then known, too
                pass
        if not more:
            return
        line = b""
        while not line.endswith(b"\n"):
            line += requests.recv(1 << 16)
        if not os.fork():
            requests.close()
            _watch(json.loads(line), *files)
            return
        for file in files:
            os.close(file)


def _watch(request: dict, out: int, err: int, status: int) -> None:
    """Forks the command, says its process id and, when it has ended, its exit code; returns in the command's process
    alone, which then ends as any does."""
    pid = os.fork()
    if pid:
        os.close(out)
        os.close(err)
        os.write(status, b"%d\n" % pid)
        _, code = os.waitpid(pid, 0)
        with contextlib.suppress(BrokenPipeError):  # the tests have been ended
            os.write(status, b"%d\n" % os.waitstatus_to_exitcode(code))
        os._exit(0)
    os.close(status)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ.clear()
    os.environ.update(request["env"])
    module, *sys.argv[1:] = request["arguments"]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
