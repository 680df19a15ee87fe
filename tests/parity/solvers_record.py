"""Records the trajectories of Wan2.2's own solvers (PyTorch, float32) that ``make test`` compares with.

``python -m tests.parity.solvers_record WAN`` with the root of a checkout of github.com/Wan-Video/Wan2.2 (recorded from
commit 42bf4cf), in the environment of ``make parity``. The solvers are set up as wan/text2video.py does.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from tests.parity import solvers_case as case


def module(root: Path, name: str) -> ModuleType:
    """wan/utils/NAME.py by itself: the package around it wants a GPU's libraries."""
    spec = importlib.util.spec_from_file_location(f"wan_{name}", root / "wan" / "utils" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def scheduler(root: Path, name: str, shift: float, steps: int) -> Any:
    """The reference's scheduler with its timesteps set."""
    if name == "unipc":
        unipc = module(root, "fm_solvers_unipc")
        made = unipc.FlowUniPCMultistepScheduler(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False)
        made.set_timesteps(steps, device="cpu", shift=shift)
        return made
    dpm = module(root, "fm_solvers")
    made = dpm.FlowDPMSolverMultistepScheduler(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False)
    dpm.retrieve_timesteps(made, device="cpu", sigmas=dpm.get_sampling_sigmas(steps, shift))
    return made


def recorded(root: Path, name: str, shift: float, steps: int) -> np.ndarray:
    """[S, 4] float32, see ``solvers_case.key``."""
    made, x = scheduler(root, name, shift, steps), torch.from_numpy(case.start())[None]
    rows = []
    for timestep in made.timesteps:
        v = torch.from_numpy(case.velocity(x.numpy(), float(timestep)))
        x = made.step(v, timestep, x, return_dict=False)[0]
        rows.append(np.concatenate([[float(timestep)], x.numpy()[0]]))
    return np.stack(rows).astype(np.float32)


if __name__ == "__main__":
    checkout = Path(sys.argv[1])
    results = {case.key(name, shift, steps): recorded(checkout, name, shift, steps)
               for name in case.NAMES for shift, steps in case.COMBINATIONS}
    save_file(results, case.RECORDED)
    print(f"{case.RECORDED}: {case.RECORDED.stat().st_size} bytes")
