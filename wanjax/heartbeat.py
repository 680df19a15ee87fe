"""A lost process ends the others, with its name: they would wait for it in the next collective for ever.

Every process sets a beat in the coordination service's store, and process 0 looks at them. It says who has shown no
sign of life; a process that fails says so itself. What is said reaches all at once, and each prints it and ends hard:
nothing that needs the others can be closed any more.

JAX's own heartbeat (:data:`wanjax.cluster.HEARTBEAT_SECONDS`), which knows numbers and no names, stands behind this
one; it alone ends a process whose threads no longer run. When process 0 dies, and the store with it, JAX aborts the
others within half a second: to be quicker they each keep a connection to it, whose end the operating system tells.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import NoReturn

import jax

from wanjax.cluster import Cluster

FAILED, LOST = 1, 69  # exit codes; 69 is EX_UNAVAILABLE of sysexits.h
INTERVAL, SILENCE = 2.0, 25.0  # seconds between beats; without one until a process is lost
_BEATS, _END, _CLOSED = "wanjax/beats", "wanjax/end", "closed"


class Watch:
    """Beats and listens from a thread of its own while it is entered; nothing for a single process.

    An error that leaves the block ends all processes. They may leave it without one at different times.

    Args:
        cluster: the processes.
        interval, silence: seconds.
        leave: ends this process with a code; for tests.
    """

    def __init__(self, cluster: Cluster, *, interval: float = INTERVAL, silence: float = SILENCE,
                 leave: Callable[[int], object] = os._exit):  # fmt: skip
        self._cluster, self._interval, self._silence, self._leave = cluster, interval, silence, leave
        self._name = cluster.names[cluster.process]
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._ending = threading.Lock()  # for good, by the first that says why this process ends
        self._missed: dict[str, tuple[str, int]] = {}  # last beat of each process, and for how many looks it was that

    def __enter__(self) -> Watch:
        if self._cluster.store is not None:
            self._thread.start()
            if self._cluster.coordinator and not self._cluster.first:
                threading.Thread(target=self._hold, name="connection to process 0", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        if error is not None and not isinstance(error, SystemExit) and self._cluster.store is not None:
            self.fail("".join(traceback.format_exception(error)).rstrip())
        self.close()

    def close(self) -> None:
        """This process goes on alone: it is missed no more, and the others' end is not its end."""
        if self._cluster.store is None or self._closing.is_set():
            return
        self._closing.set()
        self._thread.join()
        self._beat(_CLOSED)

    def fail(self, message: str) -> NoReturn:
        """Ends this process with the message and exit code 1, and the others with it.

        An error may be the trace that the loss of another process has left here, so there is time to find that first.
        """
        if self._cluster.store is None:
            sys.exit(message)
        time.sleep(self._silence + 2 * self._interval)
        print(f"{self._name}: {message}", file=sys.stderr)
        self._say(FAILED, f"{self._name} ended: {message}")
        if self._cluster.first:
            time.sleep(2 * self._interval)  # it holds the store, in which the others have to read this
        self._end(FAILED, "")
        raise SystemExit(FAILED)

    def _run(self) -> None:
        store, beat = self._cluster.store, 0
        assert store is not None
        while not self._closing.is_set():
            beat += 1
            try:
                self._beat(str(beat))
                if self._cluster.first and (silent := self._silent(dict(store.key_value_dir_get(_BEATS)))):
                    names = ", ".join(self._cluster.names[i] for i in silent)
                    self._say(LOST, f"{names}: no sign of life for {self._silence:g} s, lost")
                # the pause between beats
                end = json.loads(store.blocking_key_value_get(_END, round(1000 * self._interval)))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" in str(error):
                    continue
                gone = "is gone" if "UNAVAILABLE" in str(error) else f"failed ({error})"
                end = {"code": LOST, "said": f"{self._cluster.names[0]}: its coordination service {gone}, lost"}
            if not end["said"].startswith(f"{self._name} ended"):
                self._end(end["code"], end["said"])
            return

    def _hold(self) -> None:
        """Keeps a connection to the coordination service's port, and ends this process when there is no other one.

        It says nothing; a service that closes it for that is there when it is opened again.
        """
        host, _, port = self._cluster.coordinator.rpartition(":")
        while not self._closing.is_set():
            try:
                with socket.create_connection((host.strip("[]"), int(port)), timeout=self._interval) as line:
                    while not self._closing.is_set():
                        try:
                            if not line.recv(1 << 12):
                                break
                        except TimeoutError:
                            continue
            except (ConnectionResetError, TimeoutError):
                continue
            except ConnectionRefusedError:
                if not self._closing.is_set():
                    self._end(LOST, f"{self._cluster.names[0]}: nothing answers at {self._cluster.coordinator}, lost")
                return
            except OSError:  # no route, no name: what the store's own connection meets says more
                return

    def _silent(self, beats: dict[str, str]) -> list[int]:
        """Processes without a new beat for too many looks: of looks, so that a pause of this one harms nobody."""
        out = []
        for i in range(self._cluster.processes):
            beat = beats.get(f"{_BEATS}/{i}", "")
            last, looks = self._missed.get(str(i), ("", 0))
            looks = looks + 1 if beat == last else 0
            self._missed[str(i)] = beat, looks
            if beat != _CLOSED and looks * self._interval >= self._silence:
                out.append(i)
        return out

    def _beat(self, value: str) -> None:
        assert self._cluster.store is not None
        self._cluster.store.key_value_set(f"{_BEATS}/{self._cluster.process}", value, allow_overwrite=True)

    def _say(self, code: int, said: str) -> None:
        assert self._cluster.store is not None
        try:
            self._cluster.store.key_value_set(_END, json.dumps({"code": code, "said": said}))
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):  # the first to say something is the one to look at
                raise

    def _end(self, code: int, said: str) -> None:
        if not self._ending.acquire(blocking=False):
            return
        if said:
            print(f"{self._name} ends: {said}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        self._leave(code)
