"""Stands for the coordination service's client: a store that the threads of a test share."""

import threading
import time

import jax

from wanjax.cluster import Cluster


class FakeStore:
    def __init__(self):
        self.values, self._changed = {}, threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self._changed:
            if key in self.values and not allow_overwrite:
                raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: Config key {key} already exists.")
            self.values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key, timeout_in_ms):
        with self._changed:
            if not self._changed.wait_for(lambda: key in self.values, min(timeout_in_ms / 1000, 20)):
                raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED: GetKeyValue() timed out with key: {key}")
            return self.values[key]

    def key_value_dir_get(self, key):
        with self._changed:
            return [(name, value) for name, value in self.values.items() if name.startswith(f"{key}/")]


def clusters(count, store=None):
    """The processes of one run, each as it sees itself."""
    store = store or FakeStore()
    names = tuple(f"process {i} (host h{i}, pid {100 + i})" for i in range(count))
    return [Cluster(i, count, names, store) for i in range(count)]


def together(*calls):
    """Results of calls that run at the same time, in threads; an exception counts as one."""
    results = [None] * len(calls)

    def run(i):
        try:
            results[i] = calls[i]()
        except Exception as error:  # the test looks at it
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 20
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
        assert not thread.is_alive(), "a process waits for ever"
    return results
