"""What to change where a plan does not fit, into the devices' memory or into that of their hosts."""

from __future__ import annotations

from typing import Any

from wanjax.compiled_memory import Memory
from wanjax.config import Experiment
from wanjax.models.rows.dit import dit_rows
from wanjax.offload import is_streamed


def of_devices(
    experiment: Experiment, plan: dict[str, Any], memory: Memory, *, forwards: int, holding: str, passes: str
) -> str:
    """By how much it does not fit, and what changes that, the cheapest first.

    Args:
        experiment: what is planned.
        plan: so far, as :func:`wanjax.plan.plan` makes it.
        memory: that it takes.
        forwards, holding, passes: of sampling: calls of the network, and the settings of its plan.
    """
    limit, mesh = plan["hbm_bytes_per_device"], plan["mesh"]
    over, shards = memory.peak - limit, mesh["data"] * mesh["fsdp"]
    state_alone = memory.arguments > limit
    out: list[str] = []
    if plan["program"] == "train":
        if experiment.model.remat != "offload":
            out.append("config.model.remat=offload")
        if experiment.model.chunk_tokens == 0:
            out.append("config.model.chunk_tokens=4096")
        if experiment.optimizer.state_memory == "device" and any(
            map(is_streamed, experiment.lora.trained(dit_rows(experiment.model)))
        ):
            out.append("config.optimizer.state_memory=host")
        if plan["clips"] > shards * experiment.train.accumulate:
            out.append(f"config.train.accumulate={plan['clips'] // shards} or a smaller config.data.batch")
    if plan["program"] == "sample":
        if holding == "one" and memory.arguments > over:
            out.append("--holding blocks")
        if passes == "batched" and forwards > 1:
            out.append("--passes two")
    if plan["program"] != "train" and plan["clips"] > shards:
        out.append(f"--clips {shards}")
    if plan["program"] in ("train", "sample") and mesh["data"] > 1:
        out.append("config.mesh.fsdp in the place of data, which holds copies of the parameters")
    if not state_alone:
        out.append(_split(experiment, plan))
    out.append("more chips, or chips with more memory" if state_alone else "shorter or smaller clips")
    return f"does not fit: {over / 1e9:.2f} GB too much on each device; what helps: {'; '.join(out)}"


def of_hosts(experiment: Experiment, plan: dict[str, Any], *, holding: str) -> str | None:
    """By how much the pinned memory of a host is larger than the host's, and what changes that; None where it is not,
    or where it is not known how much there is.

    Args:
        experiment, plan, holding: as for :func:`of_devices`.
    """
    limit, each = plan["host_memory_bytes"], plan["devices"] // plan["hosts"]
    pinned = each * plan["host_bytes"]
    if limit is None or pinned <= limit:
        return None
    out: list[str] = []
    if plan["program"] == "train":
        if experiment.model.remat == "offload":
            out.append("config.model.remat=attention")
        if experiment.optimizer.state_memory == "host":
            out.append("config.optimizer.state_memory=device")
    elif holding == "blocks":
        out.append("--holding one")
    out.append("more chips")
    return (f"does not fit into its hosts: {pinned / 1e9:.1f} GB pinned for the {each} devices of each are "
            f"{(pinned - limit) / 1e9:.1f} GB more than its memory of {limit / 1e9:.0f} GB; what helps: "
            f"{'; '.join(out)}")  # fmt: skip


def _split(experiment: Experiment, plan: dict[str, Any]) -> str:
    devices, seq, heads = plan["devices"], plan["mesh"]["seq"], experiment.model.heads
    if plan["program"] == "decode":
        return "more chips, over which a frame's rows are split"
    codec = plan["program"] == "encode"
    anyhow = codec or experiment.model.sequence != "heads"  # rings take what heads do not divide into
    larger = [n for n in range(2 * seq, devices + 1) if devices % n == 0 and (anyhow or heads % n == 0)]
    if not larger:
        return "more chips, and a larger config.mesh.seq over them"
    batch = f" (and config.data.batch a multiple of {devices // larger[0]})" if plan["program"] == "train" else ""
    return f"config.mesh.seq={larger[0]}, which splits {'rows of frames' if codec else 'tokens'}{batch}"
