"""What places a process among several that were started with one command: its flags, and its start."""

from __future__ import annotations

import sys

from absl import flags

from wanjax.cluster import Cluster, ClusterError, start

flags.disclaim_key_flags()  # the flags are those of the launcher that calls define(), whose --help shows them


def define(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags of a process that is started by hand."""
    flags.DEFINE_string("coordinator", None, "Of several processes started by hand: host:port of process 0.",
                        flag_values=values)  # fmt: skip
    flags.DEFINE_integer("processes", None, "How many processes; 1 is a single one whatever the environment says.",
                         flag_values=values)  # fmt: skip
    flags.DEFINE_integer("process", None, "Which of the processes this is, from 0.", flag_values=values)


def join() -> Cluster:
    """Meets the others, of whom the flags or the environment tell; says which process this is, or ends it."""
    given = flags.FLAGS
    try:
        cluster = start(given.coordinator, given.processes, given.process)
    except ClusterError as error:
        sys.exit(f"error: {error}")
    if cluster.processes > 1:
        print(f"{cluster.names[cluster.process]}, one of {cluster.processes}", flush=True)
    return cluster
