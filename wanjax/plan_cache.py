"""Plans that were made before: the same config, program, topology, versions and library give the same answer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

from wanjax.config import Experiment, to_dict
from wanjax.plan import Settings, versions
from wanjax.source_digest import source_digest
from wanjax.topology import Topology


def folder() -> pathlib.Path:
    """Where they lie: ``wanjax/plans`` in the user's cache (XDG base directories)."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "wanjax" / "plans"


def key(experiment: Experiment, machine: Topology, settings: Settings) -> str:
    """32 hex digits that change with anything that a plan depends on, every line of this library included."""
    digest = hashlib.sha256()
    asked = {
        "config": to_dict(experiment),
        "topology": dataclasses.asdict(machine),
        "settings": dataclasses.asdict(settings),
        "versions": versions(machine.platform),
        "compiler": [os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")],
    }
    digest.update(json.dumps(asked, sort_keys=True).encode())
    digest.update(source_digest().encode())
    return digest.hexdigest()[:32]


def load(name: str) -> dict[str, Any] | None:
    """The plan of that key, or None; a damaged file counts as none."""
    try:
        return json.loads((folder() / f"{name}.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def store(name: str, plan: dict[str, Any]) -> None:
    """Keeps a plan; whole at any time.

    Raises: OSError where the folder cannot be written.
    """
    folder().mkdir(parents=True, exist_ok=True)
    part = folder() / f".{name}.{os.getpid()}"
    part.write_text(json.dumps(plan, indent=1) + "\n")
    os.replace(part, folder() / f"{name}.json")
