"""Latents from noise: the steps of the high-noise expert, then those of the low-noise expert, with guidance.

A step is one compiled program per expert, called from a loop on the host, which knows beforehand at which step the
timestep falls below the boundary. Between the experts only latents and the solver's memory are kept, so one expert's
parameters can make room for the other's.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wanjax import compiler_options, partition, solvers
from wanjax.conditions import Condition
from wanjax.device_memory import free_everywhere
from wanjax.experts import Expert, Held, mesh_of
from wanjax.models.dit import WanDiT
from wanjax.sample_config import SampleConfig

EXPERTS = ("high", "low")
HOLDING = ("auto", "both", "one", "blocks")
PASSES = ("auto", "batched", "two")


@dataclasses.dataclass(frozen=True)
class Execution:
    """How sampling is laid out in time and memory. Clips are the same up to rounding.

    Attributes:
        batch: clips that are denoised together; more is faster and takes more memory.
        holding: what is on the devices at a time: "both" experts, "one", or "blocks": the parameters stay in the
            host's memory and are copied block by block at every step. "auto" takes the first that fits.
        passes: with guidance the network answers twice, "batched" together or in "two" passes, which take less memory.
            "auto" takes the first that fits.
        group: clips that are finished before others are begun, rounded up to whole batches: what an interruption loses
            at most. Unless both experts are held each of them is read again for every group. 0: all clips.
    """

    batch: int = 1
    holding: str = "auto"
    passes: str = "auto"
    group: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch = {self.batch}: expected at least 1 clip")
        if self.group < 0:
            raise ValueError(f"group = {self.group}: expected a number of clips, 0 for all")
        for name, known in (("holding", HOLDING), ("passes", PASSES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected one of {', '.join(known)}")


class Batch(NamedTuple):
    """What B clips are made from.

    Attributes:
        noise: [B, F, h, w, C].
        text: [B, L, E] padded embeddings of the prompts.
        null_text: [B, L, E] or [1, L, E] of the negative prompt; None where both scales are 1.
        condition: images that the clips are to show, see `wanjax.conditions`.
    """

    noise: Any
    text: Any
    null_text: Any = None
    condition: Condition = Condition()


class Step(NamedTuple):
    """What a caller is told after every step."""

    expert: str
    done: int
    total: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Stage:
    """The consecutive steps of one expert."""

    expert: str
    model: WanDiT
    guidance: float
    first: int
    last: int


class _Program(NamedTuple):
    """What a compiled step depends on besides shapes."""

    model: WanDiT
    solver: tuple[str, int, float, str]
    guided: bool
    batched: bool


class _Carry(NamedTuple):
    x: Any
    history: Any


def stages_of(models: Mapping[str, WanDiT], config: SampleConfig) -> tuple[Stage, ...]:
    """The steps of each expert that has any, in order.

    Raises:
        ValueError: an expert that has steps to take is missing.
    """
    stages, first = [], 0
    for name in EXPERTS:
        count = config.expert_steps[name]
        if count and name not in models:
            raise ValueError(
                f"the {name}-noise expert is missing: {count} of the {config.steps} steps are its own "
                f"(boundary {config.boundary}, shift {config.shift}). Train it, or give a checkpoint that holds it"
            )
        if count:
            stages.append(Stage(name, models[name], config.guidance(name), first, first + count))
        first += count
    return tuple(stages)


def denoise(
    experts: Mapping[str, Expert],
    batches: Sequence[Batch],
    config: SampleConfig,
    *,
    execution: Execution | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    on_read: Callable[[str], None] = lambda name: None,
) -> Iterator[np.ndarray]:
    """Latents of each batch in turn, float32 [B, F, h, w, C] on the host.

    With both experts held, a batch is finished before the next begins. With one at a time, all batches of a group take
    the steps of the high-noise expert first, so that each expert is read once for it.

    Args:
        experts: "high" and "low"; one may be absent where no step falls to it.
        batches: all of the same size.
        config: settings, see `SampleConfig`.
        execution: see there; its ``batch`` has no meaning here.
        on_step: called after every step.
        on_read: called with an expert's name before its parameters are read.
    Raises: ValueError where an expert is missing, does not take what it would be given, or nothing fits in memory.
    """
    stages = stages_of({name: expert.model for name, expert in experts.items()}, config)
    for stage in stages:
        if stage.guidance != 1.0 and any(batch.null_text is None for batch in batches):
            raise ValueError("guidance needs the embedding of the negative prompt, null_text is None")
    if not batches:
        return
    _check_channels(stages, batches)
    execution = fitting(experts, batches[0], config, execution or Execution())
    at_once, streamed = (2 if execution.holding == "both" else 1), execution.holding == "blocks"
    held = Held(experts, at_once, streamed=streamed, on_read=on_read)
    total, done = config.steps * len(batches), 0

    def run(stage: Stage, batch: Batch, carry: _Carry) -> _Carry:
        nonlocal done
        program = _program(stage, config, execution.passes == "batched")
        variables = held.variables(stage.expert)
        carry, *given = partition.put((carry, *_inputs(program, batch)), _place(stage.model))
        for i in range(stage.first, stage.last):
            started = time.perf_counter()
            carry = jax.block_until_ready(
                _step(program)(program, variables, carry, *given, np.float32(stage.guidance), np.int32(i))
            )
            done += 1
            on_step(Step(stage.expert, done, total, time.perf_counter() - started))
        return carry

    size = 1 if execution.holding == "both" else -(-execution.group // len(batches[0].noise)) or len(batches)
    for group in (batches[i : i + size] for i in range(0, len(batches), size)):
        carries = [_begin(batch, config) for batch in group]
        for stage in stages[:-1]:
            carries = [partition.to_host(run(stage, batch, c)) for batch, c in zip(group, carries, strict=True)]
        for batch, carry in zip(group, carries, strict=True):
            yield np.asarray(partition.to_host(run(stages[-1], batch, carry).x))


def _check_channels(stages: Sequence[Stage], batches: Sequence[Batch]) -> None:
    for stage in stages:
        config = stage.model.config
        for batch in batches:
            own, given = batch.noise.shape[-1], batch.condition.channels
            if (config.in_channels, config.out_channels) != (own + given, own):
                raise ValueError(
                    f"the {stage.expert}-noise expert takes {config.in_channels} channels and gives "
                    f"{config.out_channels}; these latents have {own}, and {given} of images beside them"
                )


def _solver(config: SampleConfig) -> tuple[str, int, float, str]:
    return config.solver, config.steps, config.shift, config.grid


def _make(solver: tuple[str, int, float, str]) -> solvers.Solver:
    name, steps, shift, grid = solver
    return solvers.make(name, steps=steps, shift=shift, grid=grid)


def _program(stage: Stage, config: SampleConfig, batched: bool) -> _Program:
    guided = stage.guidance != 1.0
    return _Program(stage.model, _solver(config), guided, guided and batched)


def _begin(batch: Batch, config: SampleConfig) -> _Carry:
    x = np.asarray(batch.condition.start(batch.noise))
    return _Carry(x, _make(_solver(config)).init(x))


def _inputs(program: _Program, batch: Batch) -> tuple[Any, Any, Condition]:
    """What every step is given: embeddings of the prompts, of the negative prompt where there is guidance, images."""
    text = np.asarray(batch.text)
    return text, np.broadcast_to(batch.null_text, text.shape) if program.guided else None, batch.condition


def _place(model: WanDiT) -> jax.sharding.Sharding:
    """Clips over the mesh, or on the one device."""
    return partition.batch_sharding(mesh_of(model))


def fitting(experts: Mapping[str, Expert], batch: Batch, config: SampleConfig, execution: Execution) -> Execution:
    """``execution`` with "auto" replaced by the first that fits in the devices' memory.

    The programs are compiled for it, without any parameters; what is chosen is not compiled again.

    Raises:
        ValueError: nothing fits; says what the least would take.
    """
    if "auto" not in (execution.holding, execution.passes):
        return execution
    stages = stages_of({name: expert.model for name, expert in experts.items()}, config)
    meshes = [stage.model.mesh for stage in stages]
    free = free_everywhere(jax.devices()[:1] if meshes[0] is None else list(meshes[0].local_devices))
    ways: list[tuple[str, str]] = []
    # a host that computes has no other memory to stream from
    known = HOLDING[1:3] if jax.default_backend() == "cpu" else HOLDING[1:]
    for holding in known if execution.holding == "auto" else (execution.holding,):
        for passes in ("batched", "two") if execution.passes == "auto" else (execution.passes,):
            ways.append((holding, passes))
    least = None
    for holding, passes in ways:
        need = _bytes_needed(experts, stages, batch, config, holding, passes)
        if need <= free:
            return dataclasses.replace(execution, holding=holding, passes=passes)
        least = need if least is None else min(least, need)
    assert least is not None
    raise ValueError(
        f"sampling {len(batch.noise)} clips of {batch.noise.shape[1:4]} latents takes {least / 1e9:.2f} GB on each "
        f"device, of which {free / 1e9:.2f} GB are free: make fewer clips at a time, shorter or smaller ones, or "
        "spread them over more devices"
    )


def _bytes_needed(
    experts: Mapping[str, Expert], stages: Sequence[Stage], batch: Batch, config: SampleConfig, holding: str,
    passes: str,
) -> int:  # fmt: skip
    """Bytes on each device while the most demanding stage runs, as the compiler states them."""
    most, own = 0, {stage.expert: experts[stage.expert].nbytes() for stage in stages}
    for stage in stages:
        step = lowered(experts[stage.expert], stage, batch, config, streamed=holding == "blocks",
                       batched=passes == "batched")  # fmt: skip
        stats: Any = step.compile().memory_analysis()
        others = sum(own.values()) - own[stage.expert] if holding == "both" else 0
        whole = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
        most = max(most, whole - stats.alias_size_in_bytes + others)
    return most


def lowered(
    expert: Expert, stage: Stage, batch: Batch, config: SampleConfig, *, streamed: bool, batched: bool
) -> jax.stages.Lowered:
    """One step of a stage, ready to be compiled; neither parameters nor latents are made.

    Args:
        expert: whose parameters it takes; nothing is read.
        stage: as `stages_of` gives it.
        batch: arrays, or ``jax.ShapeDtypeStruct`` in their place.
        config: settings.
        streamed: with the stack's matrices in the host's memory.
        batched: with guidance, whether the network answers twice in one pass.
    """
    program, place = _program(stage, config, batched), _place(stage.model)

    def given(batch: Batch) -> tuple[Any, ...]:
        x = batch.condition.start(batch.noise)
        carry = _Carry(x, _make(_solver(config)).init(x))
        null_text = jnp.broadcast_to(batch.null_text, batch.text.shape) if program.guided else None
        return carry, batch.text, null_text, batch.condition

    shapes = partition.placed_shapes(jax.eval_shape(given, batch), place)
    step = _step(program)
    return step.lower(program, expert.shapes(streamed=streamed), *shapes, np.float32(stage.guidance), np.int32(0))


def _step(program: _Program) -> Any:
    """:func:`_denoised`, jitted for the program's devices."""
    return _jitted(tuple(compiler_options.of(mesh_of(program.model).devices.flat[0]).items()))


@functools.cache
def _jitted(options: tuple[tuple[str, str | bool], ...]) -> Any:
    return jax.jit(_denoised, static_argnums=0, compiler_options=dict(options))


def _denoised(
    program: _Program, variables: Any, carry: _Carry, text: Any, null_text: Any, condition: Condition, guidance: Any,
    i: Any,
) -> _Carry:  # fmt: skip
    solver, model = _make(program.solver), program.model
    x, t = jnp.asarray(carry.x), jnp.asarray(solver.timesteps, jnp.float32)[i]
    clips, frames, height, width, _ = x.shape
    inputs = condition.network_input(x)
    timesteps = condition.timesteps(t, clips, model.config.grid((frames, height, width)))
    if not program.guided:
        v = model.apply(variables, inputs, timesteps, text)
    else:
        if program.batched:
            twice = [jnp.concatenate(pair) for pair in ((inputs, inputs), (timesteps, timesteps), (text, null_text))]
            v, v_null = jnp.split(model.apply(variables, *twice), 2)
        else:
            v = model.apply(variables, inputs, timesteps, text)
            inputs, v = jax.lax.optimization_barrier((inputs, v))  # one pass after the other, in the same memory
            v_null = model.apply(variables, inputs, timesteps, null_text)
        v = v_null + guidance * (v - v_null)
    stepped, history = solver.step(carry.history, x, v, i)
    carry = _Carry(condition.after_step(jnp.asarray(stepped)), history)
    # as it came in, so that the next step is the same program
    return jax.tree.map(lambda leaf: partition.constrain(leaf, mesh_of(model), partition.BATCH), carry)
