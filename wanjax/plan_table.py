"""A plan as a table for people."""

from __future__ import annotations

from typing import Any

from wanjax.plan_search import Search, options, short

_FEW = 0.001  # share of all bytes below which a collective has no line of its own


def table(plan: dict[str, Any]) -> str:
    """What :func:`wanjax.plan.plan` found, in lines; sizes in GB = 1e9 bytes, per device."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1) or "one device"
    verdict = "fits" if plan["fits"] else "DOES NOT FIT"
    lines = [
        f"{plan['program']} of {plan['config']} on {plan['topology']}: {verdict}",
        _row("machine", f"{plan['chips']} chips, {plan['devices']} devices, {plan['hosts']} hosts; mesh {mesh}"),
        _row("config", _choices(plan)),
        _row("work", f"{plan['params']:,} parameters; {plan['clips']} clips of {plan['tokens']:,} tokens"),
        _row("", f"{plan['flops_per_step']:.3g} operations a step = {plan['flops_formula']}"),
        *_executed(plan),
        _row("memory", f"{_gb(plan['peak_bytes_per_device'])} of {_gb(plan['hbm_bytes_per_device'])} per device: "
                       f"arguments {_gb(plan['argument_bytes'])}, temporary {_gb(plan['temp_bytes'])}"),
        _row("", f"in its host's memory {_gb(plan['host_bytes'])} per device{_of_host(plan)}"),
        _row("sent", f"{_gb(plan['collective_bytes'])} per device and step; the least for this mesh is "
                     f"{_gb(plan['minimum_collective_bytes'])}"),
        *_collectives(plan),
    ]  # fmt: skip
    if estimate := plan["estimate"]:
        shares = ", ".join(f"{name} {estimate[f'{name}_seconds']:.3g} s"
                           for name in ("matmul", "attention", "memory", "network"))  # fmt: skip
        lines += [_row("estimate", f"at least {estimate['step_seconds']:.3g} s a step, MFU at most "
                                   f"{estimate['mfu']:.0%}; limited by {limit(plan)}: {shares}"),
                  _row("", estimate["note"]), _row("expected", _expected(estimate["expected"]))]  # fmt: skip
    compilers = ", ".join(f"{name} {number}" for name, number in plan["versions"].items())
    lines.append(_row("compiled", f"in {plan['compile_seconds']} s by {compilers}"))
    return "\n".join([*lines, *(f"warning: {warning}" for warning in plan["warnings"])])


def search_table(found: Search) -> str:
    """The plans of a search, a line each; sizes in GB = 1e9 bytes, per device, time in seconds per clip."""
    head = (f"{'':>3} {'fits':<5}{'s/clip ≥':>9}{'MFU ≤':>7}{'s/clip ≈':>9}{'memory':>9}{'of':>8}{'host':>8}"
            f"{'sent':>9}  {'limited by':<12}choice")  # fmt: skip
    lines = [head]
    for number, plan in enumerate(found.plans, start=1):
        seconds, sizes = plan["seconds_per_clip"], [plan[f"{name}_bytes_per_device"] / 1e9 for name in ("peak", "hbm")]
        time = "–" if seconds is None else f"{seconds:.3g}"
        mfu = f"{plan['estimate']['mfu']:.0%}" if plan["estimate"] else "–"
        expected = plan["estimate"] and plan["estimate"]["expected"]
        likely = f"{expected['step_seconds'] / plan['clips']:.3g}" if expected else "–"
        sent = "–" if plan["collective_bytes"] is None else f"{plan['collective_bytes'] / 1e9:.2f}"
        lines.append(f"{number:>3} {'yes' if plan['fits'] else 'NO':<5}{time:>9}{mfu:>7}{likely:>9}"
                     f"{sizes[0]:>9.2f}{sizes[1]:>8.1f}{plan['host_bytes'] / 1e9:>8.2f}{sent:>9}  {limit(plan):<12}"
                     f"{short(plan['overrides'])}")  # fmt: skip
    lines += [f"refused: {short(overrides)}: {reason}" for overrides, reason in found.refused]
    lines.append("sizes in GB of one device; time: ≥ a lower bound, by which they are sorted, ≈ expected, – where no "
                 "kernels were measured")
    lines.append(f"not compiled: {found.too_large} choices that are too large by formula, {found.beaten} whose mesh "
                 f"another beats in time, memory and bytes, {found.not_tried} that come after those above")
    if found.plans and found.plans[0]["fits"]:
        lines.append(f"options of the first: {options(found.plans[0]['overrides'])}")
    else:
        lines.append("none of these fits: more chips, or chips with more memory, or shorter or smaller clips")
    return "\n".join(lines)


def limit(plan: dict[str, Any]) -> str:
    """What its estimate says the time of a step is."""
    if not (estimate := plan["estimate"]):
        return "–"
    shares = {"computing": estimate["matmul_seconds"] + estimate["attention_seconds"],
              "memory": estimate["memory_seconds"], "network": estimate["network_seconds"]}  # fmt: skip
    return max(shares, key=lambda name: shares[name])


def _expected(expected: dict[str, Any] | None) -> str:
    if expected is None:
        return "–: no kernels were measured on such a device"
    shares = ", ".join(f"{name} {expected[f'{name}_seconds']:.3g} s"
                       for name in ("matmul", "attention", "elementwise", "host", "network"))  # fmt: skip
    return (f"{expected['step_seconds']:.3g} s a step, MFU {expected['mfu']:.0%}: {shares}; kernels as measured in "
            f"{expected['source']}")  # fmt: skip


def _choices(plan: dict[str, Any]) -> str:
    """What of the config decides on memory and bytes, beside the mesh."""
    model, optimizer = plan["experiment"]["model"], plan["experiment"]["optimizer"]
    size = model["chunk_tokens"]
    words = [f"{model['dtype']} products"]
    if plan["program"] == "train":
        words += [f"remat {model['remat']}", f"parameters {model['param_dtype']}, "
                  f"{'an' if optimizer['ema_decay'] else 'no'} average of them"]  # fmt: skip
    if plan["program"] in ("train", "sample"):
        words.append(f"{size:,} tokens of a device at a time" if size else "all tokens of a device at once")
    return "; ".join(words)


def _collectives(plan: dict[str, Any]) -> list[str]:
    """A line each; those that hardly count are summed."""
    found, total = plan["collectives"] or [], plan["collective_bytes"] or 0
    lines = [f"            {'collective':<20}{'dtype':<10}{'axes':<16}{'group':>6}{'count':>8}{'GB':>10}  link"]
    shown = [each for each in found if each["bytes"] >= _FEW * total]
    for each in shown:
        lines.append(f"            {each['op']:<20}{each['dtype']:<10}{'+'.join(each['axes']) or '–':<16}"
                     f"{each['group']:>6}{each['count']:>8}{each['bytes'] / 1e9:>10.4f}  {each['link']}")  # fmt: skip
    if rest := [each for each in found if each["bytes"] < _FEW * total]:
        lines.append(f"            {f'{len(rest)} kinds more':<52}{sum(each['count'] for each in rest):>8}"
                     f"{sum(each['bytes'] for each in rest) / 1e9:>10.4f}")  # fmt: skip
    return lines if found else []


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
    """What that is of a host, where it has several devices, and of how much, where that is known."""
    limit, each = plan["host_memory_bytes"], plan["devices"] // plan["hosts"]
    if not plan["host_bytes"] or (each == 1 and not limit):
        return ""
    return f", {_gb(plan['host_bytes'] * each)} of each host" + (f", which has {limit / 1e9:.0f} GB" if limit else "")


def _gb(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.3f} GB"
