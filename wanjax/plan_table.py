"""A plan as a table for people."""

from __future__ import annotations

from typing import Any

from wanjax.plan_search import Search, short


def table(plan: dict[str, Any]) -> str:
    """What :func:`wanjax.plan.plan` found, in lines; sizes in GB = 1e9 bytes, per device."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1) or "one device"
    verdict = "fits" if plan["fits"] else "DOES NOT FIT"
    lines = [
        f"{plan['program']} of {plan['config']} on {plan['topology']}: {verdict}",
        _row("machine", f"{plan['chips']} chips, {plan['devices']} devices, {plan['hosts']} hosts; mesh {mesh}"),
        _row("work", f"{plan['params']:,} parameters; {plan['clips']} clips of {plan['tokens']:,} tokens; "
                     f"{plan['flops_per_step']:.3g} operations a step = {plan['flops_formula']}"),
        *_executed(plan),
        _row("memory", f"{_gb(plan['peak_bytes_per_device'])} of {_gb(plan['hbm_bytes_per_device'])} per device: "
                       f"arguments {_gb(plan['argument_bytes'])}, temporary {_gb(plan['temp_bytes'])}; "
                       f"of the host {_gb(plan['host_bytes'])}{_of_host(plan)}"),
        _row("sent", f"{_gb(plan['collective_bytes'])} per device and step; the least for this mesh is "
                     f"{_gb(plan['minimum_collective_bytes'])}"),
    ]  # fmt: skip
    if plan["collectives"]:
        lines.append(f"  {'collective':<20}{'dtype':<10}{'axes':<16}{'group':>6}{'count':>8}{'GB':>10}  link")
    for each in plan["collectives"] or ():
        lines.append(f"  {each['op']:<20}{each['dtype']:<10}{'+'.join(each['axes']) or '–':<16}{each['group']:>6}"
                     f"{each['count']:>8}{each['bytes'] / 1e9:>10.4f}  {each['link']}")  # fmt: skip
    if estimate := plan["estimate"]:
        shares = ", ".join(f"{name} {estimate[f'{name}_seconds']:.3g} s"
                           for name in ("matmul", "attention", "memory", "network"))  # fmt: skip
        lines += [_row("estimate", f"at least {estimate['step_seconds']:.3g} s a step, MFU at most "
                                   f"{estimate['mfu']:.0%}: {shares}"),
                  _row("", estimate["note"])]  # fmt: skip
    compilers = ", ".join(f"{name} {number}" for name, number in plan["versions"].items())
    lines.append(_row("compiled", f"in {plan['compile_seconds']} s by {compilers}"))
    return "\n".join([*lines, *(f"warning: {warning}" for warning in plan["warnings"])])


def search_table(found: Search) -> str:
    """The plans of a search, a line each; sizes in GB = 1e9 bytes, per device, time in seconds per clip."""
    head = f"{'':>3} {'fits':<5}{'s/clip':>9}{'MFU':>6}{'memory':>9}{'host':>8}{'sent':>9}  limited by  choice"
    lines = [head]
    for number, plan in enumerate(found.plans, start=1):
        seconds, peak = plan["seconds_per_clip"], plan["peak_bytes_per_device"] / 1e9
        time = "–" if seconds is None else f"{seconds:.3g}"
        mfu = f"{plan['estimate']['mfu']:.0%}" if plan["estimate"] else "–"
        sent = "–" if plan["collective_bytes"] is None else f"{plan['collective_bytes'] / 1e9:.2f}"
        lines.append(f"{number:>3} {'yes' if plan['fits'] else 'NO':<5}{time:>9}{mfu:>6}{peak:>9.2f}"
                     f"{plan['host_bytes'] / 1e9:>8.2f}{sent:>9}  {limit(plan):<12}{short(plan['overrides'])}")
    lines += [f"refused: {short(overrides)}: {reason}" for overrides, reason in found.refused]
    lines.append(f"left out, by formula: {found.too_large} that are too large, {found.beaten} whose mesh another "
                 f"beats in time, memory and bytes, {found.not_tried} no faster than the last one tried")  # fmt: skip
    return "\n".join(lines)


def limit(plan: dict[str, Any]) -> str:
    """What its estimate says the time of a step is."""
    if not (estimate := plan["estimate"]):
        return "–"
    shares = {"computing": estimate["matmul_seconds"] + estimate["attention_seconds"],
              "memory": estimate["memory_seconds"], "network": estimate["network_seconds"]}  # fmt: skip
    return max(shares, key=lambda name: shares[name])


def _executed(plan: dict[str, Any]) -> list[str]:
    if not plan["executed_flops"]:
        return []
    share = plan["executed_flops"] / plan["flops_per_step"]
    lines = [_row("executed", f"{plan['executed_flops']:.3g} operations, {share:.2f} × the model's own")]
    return lines + [_row("", f"attention {each['way']} of {each['queries']:,} queries and {each['keys']:,} keys, "
                             f"{each['heads']} heads: {each['count']} kernels") for each in plan["attention_kernels"]]


def _row(name: str, text: str) -> str:
    return f"  {name:<10}{text}"


def _of_host(plan: dict[str, Any]) -> str:
    """What a host has for all its devices, where it is known and something lies there."""
    limit, each = plan["host_memory_bytes"], plan["devices"] // plan["hosts"]
    return f" of {limit / each / 1e9:.0f} GB for each" if plan["host_bytes"] and limit else ""


def _gb(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.3f} GB"
