"""A forked command has an environment, an output and an end of its own."""
import os
import signal
import sys

import pytest

from tests import forked

SHOW = [sys.executable, "-m", "calendar"]


def test_a_command_is_run_as_by_the_interpreter():
    done = forked.run([*SHOW, "2026", "11"], env={**os.environ, "LC_ALL": "C"})
    assert (done.returncode, done.stdout.split()[:2], done.stderr) == (0, ["November", "2026"], "")
    done = forked.run([*SHOW, "--month"])
    assert done.returncode == 2 and not done.stdout and done.stderr.startswith("usage: calendar")
    merged = forked.Command([*SHOW, "--month"], os.environ, merged=True)
    assert merged.communicate(60) == (done.stderr, "") and merged.poll() == 2


def test_a_signal_ends_a_command_and_nothing_else():
    sleep = [sys.executable, "-m", "timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)"]
    sleeping = forked.Command(sleep, os.environ)
    assert forked.run([*SHOW, "2026"]).returncode == 0 and sleeping.poll() is None
    sleeping.send_signal(signal.SIGKILL)
    assert sleeping.wait(30) == sleeping.poll() == -signal.SIGKILL
    assert forked.run([*SHOW, "2026"]).returncode == 0


def test_what_cannot_be_forked_is_refused():
    with pytest.raises(ValueError, match="JAX_ENABLE_X64: read when libraries are imported; use subprocess.run"):
        forked.run([*SHOW, "2026"], env={**os.environ, "JAX_ENABLE_X64": "1"})
    with pytest.raises(ValueError, match="a forked command is .* -m MODULE"):
        forked.run(["bash", "-c", "true"])
