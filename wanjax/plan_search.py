"""Which mesh, which remat policy, how many tokens at a time, what held where: the plans of a config that fit, the
fastest first.

All choices are ordered by a lower bound on their time, by formula alone. Those that need more than a device's memory by
formula (:mod:`wanjax.plan_memory`) are left out, and meshes that another one beats: that is as fast, takes as little
memory and sends as little with the same policies. The rest is compiled in that order until enough plans were made or no
choice that is left can be faster than the fastest that fits.

Chunks of tokens and state in the hosts' memory save memory and never time, so that a choice has what takes the most
that fits by formula: state on the devices and the largest chunks, then smaller ones, then state on the hosts and again
the largest chunks. Where its compiler says that a choice does not fit, the next one of these follows.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from wanjax import flops, offload, partition, plan_memory, programs, roofline, traffic
from wanjax.compiled_memory import argument_bytes
from wanjax.config import ConfigError, Experiment, MeshConfig, validate
from wanjax.models import rows
from wanjax.models.dit_config import REMAT
from wanjax.models.rows.dit import dit_rows
from wanjax.offload import is_streamed
from wanjax.optim import MEMORIES
from wanjax.plan import PlanError, Settings, plan_program
from wanjax.topology import Topology

SEARCHED = ("train", "sample", "encode")
_SLACK = 1.05  # a compiler may come to need less than any has needed so far, by as much
CHUNKS = (0, 8192, 4096, 2048, 1024)  # tokens of a device at a time that are tried, 0 for all
STATE = "config.optimizer.state_memory"
# policies that keep nothing which is computed chunk by chunk: it would be computed anew all the same
CHUNKED = ("full", "attention", "offload")


@dataclasses.dataclass(frozen=True)
class Choice:
    """One way to run a program.

    Attributes:
        experiment, settings: what is planned.
        overrides: how they differ from what was asked for, by the name of the field or option.
        seconds: of one clip at least, by formula; 0 where the machine has no stated rates.
        memory: of one device at least, by formula.
        sent: bytes of one device at least, by formula.
        smaller: the same in less memory, if there is one: with fewer tokens at a time, or state on the hosts.
    """

    experiment: Experiment
    settings: Settings
    overrides: dict[str, Any]
    seconds: float
    memory: int
    sent: int
    smaller: Choice | None = None

    @property
    def policies(self) -> tuple[str, Settings]:
        """What is chosen beside the mesh: formulas do not tell what it costs to fetch from the hosts' memory."""
        return self.experiment.model.remat, self.settings

    @property
    def at_once(self) -> float:
        """Tokens of a device at a time; formulas do not tell what chunks cost either."""
        return self.experiment.model.chunk_tokens or math.inf

    @property
    def on_hosts(self) -> bool:
        """Whether moments and average come from the hosts at every step; the rate of that link is not known."""
        return self.experiment.optimizer.state_memory == "host"


@dataclasses.dataclass(frozen=True)
class Search:
    """What came of it.

    Attributes:
        plans: those that were made, those that fit first, by seconds of one clip; each with its "overrides" and its
            "seconds_per_clip", null for simulated devices.
        refused: choices that a compiler refused for another reason than memory, with what it said.
        too_large: choices left out because they cannot fit.
        beaten: choices left out because another mesh is as good in all three by formula.
        not_tried: choices left out because enough plans were made, or none of them can be faster.
    """

    plans: tuple[dict[str, Any], ...]
    refused: tuple[tuple[dict[str, Any], str], ...]
    too_large: int
    beaten: int
    not_tried: int


def choices(experiment: Experiment, machine: Topology, settings: Settings, devices: Sequence[Any]) -> list[Choice]:
    """All that can be laid over the machine, by their lower bound.

    Args:
        experiment: what is asked for; its mesh, remat policy, chunks of tokens and memory of the optimizer's state are
            not obeyed.
        machine: where.
        settings: of the program.
        devices: of the machine.
    Raises: PlanError: a program with nothing to choose, or none of whose choices can be laid over the machine.
    """
    if settings.program not in SEARCHED:
        raise PlanError(f"--search: nothing is chosen for --program {settings.program}; expected one of "
                        f"{', '.join(SEARCHED)}")  # fmt: skip
    found, why, limit = [], "", machine.hbm_bytes()
    copies: dict[str, plan_memory.Copies] = {}  # of every parameter: it and its moments, on any mesh
    for sizes in meshes(machine.devices):
        try:
            laid, mesh = programs.lay_out(dataclasses.replace(experiment, mesh=MeshConfig(**sizes)), devices)
            validate(laid)
        except ValueError as error:  # says what does not divide
            why = str(error)
            continue
        if settings.program == "train" and not copies:
            copies = {memory: _copies(programs.train(_in(laid, memory), mesh)) for memory in _memories(laid, machine)}
        at = {f"config.mesh.{axis}": size for axis, size in sizes.items()}
        for option in _options(settings):
            chosen = Settings(settings.program, settings.clips, param_dtype=settings.param_dtype, **option)
            for ways in _ways(laid, mesh, settings, tuple(copies)):
                choice = None
                for overrides, own in ways:
                    named = {**at, **overrides, **{f"--{name}": value for name, value in option.items()}}
                    bounds = _bounds(own, machine, mesh, chosen, copies)
                    if bounds and (choice is None or bounds[1] <= limit):  # else it does not fit as fast
                        choice = Choice(own, chosen, named, *bounds, smaller=choice)
                if choice:
                    found.append(choice)
    if not found:
        raise PlanError(f"--search: no mesh of {machine.devices} devices goes with this config: {why}")
    return sorted(found, key=lambda choice: (choice.seconds, choice.sent))


def search(
    experiment: Experiment, machine: Topology, settings: Settings, devices: Sequence[Any],
    make: Callable[[Experiment, Settings], dict[str, Any]], *, tries: int, refusals: tuple[type[Exception], ...],
    say: Callable[[str], None] = lambda text: None,
) -> Search:  # fmt: skip
    """Makes plans.

    Args:
        experiment, machine, settings, devices: as :func:`choices` takes them.
        make: the plan of one choice.
        tries: plans at most.
        refusals: errors of ``make`` that speak against one choice alone.
        say: is told what is tried.
    """
    known = choices(experiment, machine, settings, devices)
    fitting = [choice for choice in known if choice.memory <= _SLACK * machine.hbm_bytes()]
    left = [choice for place, choice in enumerate(fitting) if not any(
        _beats(other, choice, earlier=before < place) for before, other in enumerate(fitting))]  # fmt: skip
    plans: list[dict[str, Any]] = []
    refused: list[tuple[dict[str, Any], str]] = []
    best, waiting = math.inf, left[::-1]
    while waiting and len(plans) + len(refused) < tries and waiting[-1].seconds <= best:
        choice = waiting.pop()
        say(f"{len(plans) + len(refused) + 1} of at most {tries}: {short(choice.overrides)}")
        try:
            plan = make(choice.experiment, choice.settings)
        except refusals as error:
            refused.append((choice.overrides, str(error)))
            continue
        seconds = plan["estimate"] and plan["estimate"]["step_seconds"] / plan["clips"]
        plans.append({**plan, "overrides": choice.overrides, "seconds_per_clip": seconds})
        if plan["fits"] and seconds is not None:
            best = min(best, seconds)
        elif not plan["fits"] and choice.smaller:
            waiting.append(choice.smaller)
    plans.sort(key=_rank)
    return Search(tuple(plans), tuple(refused), len(known) - len(fitting), len(fitting) - len(left),
                  len(waiting))  # fmt: skip


def _beats(one: Choice, other: Choice, *, earlier: bool) -> bool:
    """Whether its mesh is as good in everything, and better in something or equal and earlier."""
    if one.policies != other.policies or one.at_once < other.at_once or one.on_hosts > other.on_hosts:
        return False
    pairs = ((one.seconds, other.seconds), (one.memory, other.memory), (one.sent, other.sent))
    if any(own > others for own, others in pairs):
        return False
    return earlier or any(own < others for own, others in pairs)


def short(overrides: dict[str, Any]) -> str:
    """A choice in few words; axes of size 1 are left out, chunks where there are none, and state on the devices."""
    usual = {"config.model.chunk_tokens": 0, STATE: "device"}
    words = [f"{name.split('.')[-1].removeprefix('--')} {value}" for name, value in overrides.items()
             if value != usual.get(name, 1)]  # fmt: skip
    return ", ".join(words) or "one device"


def options(overrides: dict[str, Any]) -> str:
    """A choice as options of the launchers."""
    return " ".join(f"--{name.removeprefix('--')}={value}" for name, value in overrides.items())


def meshes(devices: int) -> Iterator[dict[str, int]]:
    """Sizes of the axes whose product is that number."""
    divisors = [size for size in range(1, devices + 1) if devices % size == 0]
    for sizes in itertools.product(divisors, repeat=len(partition.AXES) - 1):
        if devices % math.prod(sizes) == 0:
            yield dict(zip(partition.AXES, (*sizes, devices // math.prod(sizes)), strict=True))


def _ways(
    experiment: Experiment, mesh: Mesh, settings: Settings, memories: Sequence[str]
) -> Iterator[list[tuple[dict[str, Any], Experiment]]]:
    """Of training, every remat policy, with what is slowest and takes the least memory first."""
    if settings.program != "train":
        yield [({}, experiment)]
        return
    tokens = plan_memory.tokens_of_device(programs.training_work(experiment), mesh)
    sizes = sorted(chunk for chunk in CHUNKS if 0 < chunk < tokens)
    for remat in REMAT:
        ways = []
        for memory, chunk in itertools.product(memories[::-1], (*(sizes if remat in CHUNKED else ()), 0)):
            model = dataclasses.replace(experiment.model, remat=remat, chunk_tokens=chunk)
            overrides = {"config.model.remat": remat, "config.model.chunk_tokens": chunk, STATE: memory}
            ways.append((overrides, dataclasses.replace(_in(experiment, memory), model=model)))
        yield ways


def _memories(experiment: Experiment, machine: Topology) -> tuple[str, ...]:
    """Where moments and average can lie, the fastest first: on TPUs, where some of them are moved, on the hosts, too.
    GPUs that are not there have no such memory, and of simulated devices both are one."""
    moved = any(map(is_streamed, experiment.lora.trained(dit_rows(experiment.model))))
    return MEMORIES if machine.platform == "tpu" and moved else MEMORIES[:1]


def _in(experiment: Experiment, memory: str) -> Experiment:
    optimizer = dataclasses.replace(experiment.optimizer, state_memory=memory)
    return dataclasses.replace(experiment, optimizer=optimizer)


def _options(settings: Settings) -> Iterator[dict[str, str]]:
    """Of sampling, what is held where and how guidance is computed, unless it was asked for."""
    if settings.program != "sample":
        yield {}
        return
    holding = (settings.holding,) if settings.holding else programs.HOLDING
    passes = (settings.passes,) if settings.passes else programs.PASSES
    for held, taken in itertools.product(holding, passes):
        yield {"holding": held, "passes": taken}


def _copies(program: programs.Program) -> plan_memory.Copies:
    """Of a training state, over the parameters of its network."""
    sizes = {True: 0, False: 0}
    for leaf in jax.tree.leaves(program.arguments):
        sizes[leaf.sharding.memory_kind == offload.HOST] += math.prod(leaf.shape) * leaf.dtype.itemsize
    count = rows.count(program.frozen or program.rows)  # factors are small beside frozen weights
    return plan_memory.Copies(sizes[False] / count, sizes[True] / count)


def _bounds(
    experiment: Experiment, machine: Topology, mesh: Mesh, settings: Settings, copies: Mapping[str, plan_memory.Copies]
) -> tuple[float, int, int] | None:
    """Seconds of one clip, memory, and bytes sent, at least; None where clips do not divide."""
    model = experiment.model
    if settings.program == "train":  # without building the program of every mesh
        work, table, lora = programs.training_work(experiment), dit_rows(model), experiment.lora
        least = traffic.minimum(model, lora.trained(table), mesh, work, table if lora.rank else (), lora.base_dtype)
        held = plan_memory.training(experiment, mesh, work, machine=machine,
                                    copies=copies[experiment.optimizer.state_memory])  # fmt: skip
    else:
        try:
            program = plan_program(experiment, mesh, settings)
        except ConfigError:
            return None
        work, least, held = program.work, program.minimum, argument_bytes(program.arguments)
        if settings.program == "sample":
            held = plan_memory.sampling(model, mesh, work, machine=machine, arguments=held)
    if settings.program == "encode":
        matmul, attention = float(program.flops), 0.0
    else:
        kernels = machine.chip is not None and model.attention not in ("plain", "blockwise")
        times_of = roofline.executed(model.remat, train=work.train, kernels=kernels, chunked=model.chunk_tokens > 0,
                                     frozen=work.train and experiment.lora.rank > 0)  # fmt: skip
        forwards = [work.clips * work.forwards * times for times in times_of]
        matmul = forwards[0] * flops.matmul(model, work.tokens, work.text_tokens)
        attention = forwards[1] * flops.attention(model, work.tokens, work.text_tokens)
    total = roofline.estimate(machine, model_flops=matmul, matmul_flops=matmul, attention_flops=attention,
                              memory_bytes=held, sent={machine.links[0]: least})  # fmt: skip
    return 0.0 if total is None else total.step_seconds / work.clips, held, least


def _rank(plan: dict[str, Any]) -> tuple[bool, float, float]:
    figures = (plan["seconds_per_clip"], plan["collective_bytes"])
    seconds, sent = (math.inf if figure is None else figure for figure in figures)
    return not plan["fits"], seconds, sent
