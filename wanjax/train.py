"""Training of one expert: the state, one step, validation, and the loop, which reads from top to bottom.

Everything random in step n (noise, timesteps) comes from ``fold_in(key, n)`` and every batch from the data position
that is saved with the state, so a run that was killed and restarted is bit for bit the run that was not.
"""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wanjax import compiler_options, offload, optim, partition, rectified_flow
from wanjax.first_frame import condition, draw, exact, share
from wanjax.input_watch import InputWatch
from wanjax.lora_config import LoraConfig
from wanjax.models import rows
from wanjax.models.dit import WanDiT
from wanjax.models.rows.dit import dit_rows
from wanjax.models.shadow_head import KEY as SHADOW_HEAD
from wanjax.models.shadow_head import ShadowHead
from wanjax.objectives import Objective, Prediction
from wanjax.optim import OptimizerConfig
from wanjax.profiler_window import ProfilerWindow
from wanjax.stop import Stopped, StopRequests
from wanjax.throughput import StepClock, work_of
from wanjax.train_config import EXPERTS, TrainConfig


@functools.partial(jax.tree_util.register_dataclass, data_fields=["step", "params", "ema", "opt_state"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class TrainState:
    """step: int32 scalar; params, ema: what is trained, in float32: the transformer's tree or factors of its matrices,
    with the shadow head's beside it where one is trained, ema None where no average is kept; opt_state: of the optax
    chain."""

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any

    @property
    def shown(self) -> Any:
        """The weights that are validated and previewed: the average where there is one."""
        return self.params if self.ema is None else self.ema


FULL = LoraConfig()  # the network itself is trained


class Diverged(FloatingPointError):
    """A loss term or the gradient is not finite; says which, at which step, and what is safe."""


def network_rows(model: WanDiT, head: ShadowHead | None = None, lora: LoraConfig = FULL) -> tuple[rows.Row, ...]:
    """Rows of everything that is trained."""
    return (*lora.trained(dit_rows(model.config)), *(head.rows if head else ()))


def state_shapes(model: WanDiT, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh,
                 params_dtype: str = "float32", head: ShadowHead | None = None, *, averaged: bool = True,
                 lora: LoraConfig = FULL, memory: str = "device") -> TrainState:
    """Shapes, dtypes and shardings of the state, without allocating anything; ``averaged``: with an EMA; ``memory``: as
    ``OptimizerConfig.state_memory``.

    Raises:
      ValueError: for ``memory = "host"`` on devices without pinned host memory.
    """
    table = network_rows(model, head, lora)
    params = rows.shapes(table, params_dtype)
    params_sharding = rows.shardings(table, mesh)
    beside = offload.shardings(table, mesh=mesh) if memory == "host" else params_sharding
    shapes = jax.eval_shape(functools.partial(_first_state, optimizer, averaged), params)
    alone = partition.replicated(mesh)
    by_path = dict(jax.tree.leaves_with_path(beside))
    opt_sharding = jax.tree.map_with_path(lambda path, _: by_path.get(optim.owner(path, by_path), alone),
                                          shapes.opt_state)
    shardings = dataclasses.replace(shapes, step=alone, params=params_sharding, ema=beside if averaged else None,
                                    opt_state=opt_sharding)
    return partition.placed_shapes(shapes, shardings)


def init_state(model: WanDiT, optimizer: optax.GradientTransformation, shapes: TrainState, key: jax.Array,
               params: Any | None = None, head: ShadowHead | None = None, lora: LoraConfig = FULL) -> TrainState:
    """The first state, made where it will live.

    ``params`` continues given weights of the transformer instead of random ones; the head and factors always start
    anew.
    """
    shardings, averaged = jax.tree.map(lambda x: x.sharding, shapes), shapes.ema is not None

    def beside(k: jax.Array) -> dict[str, Any]:
        return {SHADOW_HEAD: head.init(jax.random.fold_in(k, 1))} if head else {}

    def own(k: jax.Array) -> dict[str, Any]:
        return lora.init(k, dit_rows(model.config)) if lora.rank else model.init(k)["params"]

    if params is None:
        return jax.jit(lambda k: _first_state(optimizer, averaged, {**own(k), **beside(k)}),
                       out_shardings=shardings)(key)
    params = {**params, **beside(key)}
    params = jax.tree.map(lambda p, x: jax.device_put(jnp.asarray(p, x.dtype), x.sharding), params, shapes.params)
    return jax.jit(functools.partial(_first_state, optimizer, averaged), out_shardings=shardings)(params)


def _first_state(optimizer: optax.GradientTransformation, averaged: bool, params: Any) -> TrainState:
    # the copy keeps params and ema apart, so that both can be donated
    ema = jax.tree.map(jnp.copy, params) if averaged else None
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))


def decay_mask(model: WanDiT, head: ShadowHead | None = None, lora: LoraConfig = FULL) -> Any:
    """True for matrices, factors among them: the tensors that weight decay applies to."""
    return jax.tree.map(lambda axes: len([a for a in axes if a != "layers"]) >= 2,
                        rows.logical_axes(network_rows(model, head, lora)), is_leaf=lambda x: isinstance(x, tuple))


def make_optimizer(config: OptimizerConfig, steps: int, model: WanDiT, head: ShadowHead | None = None,
                   lora: LoraConfig = FULL) -> optax.GradientTransformation:
    """The optimizer of what is trained of a transformer and its head; see :func:`wanjax.optim.make_optimizer`."""
    axes = rows.logical_axes(network_rows(model, head, lora))
    stacked = jax.tree_util.tree_map_with_path(
        lambda path, a: a[0] == "layers" and len(a) == 3 and path[-1].key == "kernel", axes,
        is_leaf=lambda x: isinstance(x, tuple))
    return optim.make_optimizer(config, steps, decay_mask(model, head, lora), stacked)


def variables_of(params: Any, base: Any = None, lora: LoraConfig = FULL) -> dict[str, Any]:
    """What the transformer is applied with: what is trained, or with ``lora`` the frozen weights ``base`` and it."""
    if not lora.rank:
        return {"params": params}
    return {"params": base, "lora": lora.changes({k: v for k, v in params.items() if k != SHADOW_HEAD})}


def make_train_step(model: WanDiT, objective: Objective, optimizer: optax.GradientTransformation, *,
                    timesteps: tuple[float, float], shift: float, accumulate: int, ema_decay: float,
                    first_frame: float = 0.0, head: ShadowHead | None = None, lora: LoraConfig = FULL
                    ) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """One optimizer step: ``step(state, {"latents": [B,F,h,w,C], "text": [B,L,E]}, key, ...) -> (state, metrics)``.

    Pure; jit it with the state donated. After the key come ``decoder_params`` where the objective has a decoder, else
    None, and with ``lora`` the frozen weights ``base``, which are not the state's. With a ``head`` the batch holds
    "visibility" too, and "image" for a transformer that reads image latents. Metrics are float32 scalars: the
    objective's, and ``grad_norm``.

    A clip is given its first frame with probability ``first_frame``. That latent frame is then clean and counts as
    predicted exactly: it has no loss, and differences over time are taken from it.
    """

    def loss(params: Any, base: Any, step: jax.Array, decoder_params: Any, x0: jax.Array, text: jax.Array,
             noise: jax.Array, timestep: jax.Array, visibility: jax.Array | None, given: jax.Array | None,
             image: jax.Array | None) -> tuple[jax.Array, dict[str, jax.Array]]:
        sigma = timestep / 1000.0
        noised = jnp.asarray(rectified_flow.add_noise(x0, noise, sigma))
        target = jnp.asarray(rectified_flow.velocity_target(x0, noise))
        latents, times = _shown(model, noised, timestep, x0, given, image)
        variables = variables_of(params, base, lora)
        if head is None:
            velocity, logits = model.apply(variables, latents, times, text), None
        else:
            velocity, states = model.apply_with_taps(variables, latents, times, text, taps=head.taps)
            f, h, w = x0.shape[1:4]
            logits = head.apply(params[SHADOW_HEAD], states, (f, h, w))
        velocity = exact(velocity, target, given)
        return objective(Prediction(velocity, target, x0, sigma, logits, visibility, decoder_params), step)

    value_and_grad = jax.value_and_grad(lambda *args: loss(*args), has_aux=True)

    def step_fn(state: TrainState, batch: Mapping[str, jax.Array], key: jax.Array, decoder_params: Any = None,
                base: Any = None) -> tuple[TrainState, dict[str, jax.Array]]:
        x0, text, visibility, image = batch["latents"], batch["text"], batch.get("visibility"), batch.get("image")
        noise_key, time_key, given_key = jax.random.split(jax.random.fold_in(key, state.step), 3)
        noise = jax.random.normal(noise_key, x0.shape, jnp.float32)
        timestep = rectified_flow.sample_timesteps(time_key, x0.shape[0], shift=shift, low=timesteps[0],
                                                   high=timesteps[1])
        given = draw(model.config, first_frame, given_key, x0.shape[0])
        if accumulate == 1:
            (_, metrics), grads = value_and_grad(state.params, base, state.step, decoder_params, x0, text, noise,
                                                 timestep, visibility, given, image)
        else:
            def micro(total: Any, part: tuple[jax.Array, ...]) -> tuple[Any, dict[str, jax.Array]]:
                (_, metrics), grads = value_and_grad(state.params, base, state.step, decoder_params, *part)
                return jax.tree.map(jnp.add, total, grads), metrics

            # interleaved, so that every device's own clips are split, and none moves
            parts = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, accumulate, *a.shape[1:]), 1, 0),
                                 (x0, text, noise, timestep, visibility, given, image))
            grads, metrics = jax.lax.scan(micro, jax.tree.map(jnp.zeros_like, state.params), parts)
            grads, metrics = jax.tree.map(lambda g: g / accumulate, grads), jax.tree.map(jnp.mean, metrics)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = None if state.ema is None else optim.update_ema(state.ema, params, state.step, ema_decay)
        metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, params, ema, opt_state), metrics

    return step_fn


def _shown(model: WanDiT, noised: jax.Array, timestep: jax.Array, x0: jax.Array, given: Any, image: jax.Array | None
           ) -> tuple[jax.Array, jax.Array]:
    """Latents and timesteps as the transformer reads them."""
    shown, (f, h, w) = condition(model.config, x0, given, image), x0.shape[1:4]
    return shown.network_input(shown.start(noised)), shown.timesteps(timestep, len(x0), model.config.grid((f, h, w)))


def jit_train_step(step: Callable[..., tuple[TrainState, dict[str, jax.Array]]], shapes: TrainState) -> Any:
    """The step as the loop runs it: jitted, the state donated, the new one where ``shapes`` has the old one."""
    places = jax.tree.map(lambda x: x.sharding, shapes)
    options = compiler_options.of_training(next(iter(places.step.device_set)))
    return jax.jit(step, donate_argnums=0, out_shardings=(places, None), compiler_options=options)


def make_validation(model: WanDiT, *, timesteps: tuple[float, float], bins: int, first_frame: float = 0.0
                    ) -> Callable[..., jax.Array]:
    """``validate(variables, batch, key) -> [bins]`` velocity loss at the centre of equal-width noise bins, fixed noise.

    The first clips of a batch are given their first frame, as large a share of it as ``first_frame`` says.
    """
    low, high = timesteps
    centres = low + (np.arange(bins) + 0.5) * (high - low) / bins

    # every process reads all bins
    @functools.partial(jax.jit, out_shardings=None if model.mesh is None else partition.replicated(model.mesh))
    def validate(variables: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> jax.Array:
        x0 = batch["latents"]
        noise = jax.random.normal(key, x0.shape, jnp.float32)
        target = jnp.asarray(rectified_flow.velocity_target(x0, noise))
        given = share(model.config, first_frame, x0.shape[0])

        def one(timestep):
            t = jnp.full((x0.shape[0],), timestep)
            noised = jnp.asarray(rectified_flow.add_noise(x0, noise, t / 1000.0))
            latents, times = _shown(model, noised, t, x0, given, batch.get("image"))
            velocity = model.apply(variables, latents, times, batch["text"])
            return jnp.mean(jnp.square(exact(velocity, target, given) - target))

        return jax.lax.map(one, jnp.asarray(centres, jnp.float32))

    return validate


class Log(Protocol):
    """Where metrics go (run_log.RunLog)."""

    folder: pathlib.Path

    def cut(self, step: int) -> None: ...
    def step(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def validation(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def image(self, step: int, image: np.ndarray) -> None: ...
    def throughput(self, step: int, figures: Mapping[str, float]) -> None: ...


class Checkpoints(Protocol):
    """Where states go (checkpoint.Checkpoints)."""

    @property
    def latest(self) -> int | None: ...
    def restore(self, shapes: TrainState) -> tuple[TrainState, Any] | None: ...
    def save(self, step: int, state: TrainState, position: Any) -> None: ...
    def wait(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Expert:
    """One expert's training, everything bound but the state.

    Attributes:
      name: "high" or "low".
      model: with its mesh.
      objective, optimizer_config, config: what to minimise, how, and what the loop does.
      mesh: over which the state and the batches lie.
      seed: of parameters and noise.
      params: weights to continue, or None; a function, so that nothing is read when a checkpoint is restored. With
        ``lora`` the frozen weights, in the dtype and place in which they are held, which are always read.
      batches: endless; ``get_state``/``set_state`` give and take its position.
      validation: held-out batches, in a fixed order.
      preview: what the model is applied with, with the weights that are shown -> an image [*, *, 3] uint8, or None.
      to_global: a batch of this process's rows -> arrays over the mesh.
      head: trained along where the objective has the shadow term; the batches then hold "visibility". For a model that
        reads image latents they hold "image".
      lora: which factors are trained instead of the model's own weights, if any.
    """

    name: str
    model: WanDiT
    objective: Objective
    optimizer_config: OptimizerConfig
    config: TrainConfig
    mesh: jax.sharding.Mesh
    seed: int
    params: Callable[[], Any] | None
    batches: Any
    validation: Sequence[Mapping[str, np.ndarray]]
    preview: Callable[[Any], np.ndarray] | None
    to_global: Callable[[Mapping[str, np.ndarray]], Mapping[str, jax.Array]]
    head: ShadowHead | None = None
    lora: LoraConfig = FULL


def train_expert(expert: Expert, checkpoints: Checkpoints, log: Log, *, stop: StopRequests | None = None,
                 on_step: Callable[[], None] | None = None) -> TrainState:
    """Trains one expert from its newest checkpoint, or from the start, to its last step.

    Args:
      stop: the run's; None where this expert is all of it. A request during the last step leaves the state whole and
        stays there for whoever asks next.

    Raises:
      Diverged: when a loss term or the gradient norm is not finite; the last checkpoint is untouched.
      Stopped: after SIGTERM or SIGINT to any process, when the step is finished and its state saved.
    """
    stop = stop or StopRequests()
    config, steps, span = expert.config, expert.config.steps(expert.name), expert.config.timesteps(expert.name)
    optimizer = make_optimizer(expert.optimizer_config, steps, expert.model, expert.head, expert.lora)
    shapes = state_shapes(expert.model, optimizer, expert.mesh, head=expert.head,
                          averaged=expert.optimizer_config.averaged, lora=expert.lora,
                          memory=expert.optimizer_config.state_memory)
    near = jax.tree.map(lambda x: x.sharding, shapes.params)

    def shown(state: TrainState) -> dict[str, Any]:
        return variables_of(jax.device_put(state.shown, near), base, expert.lora)

    key = jax.random.fold_in(jax.random.key(expert.seed), EXPERTS.index(expert.name))
    init_key, step_key, validation_key = jax.random.split(key, 3)

    restored = checkpoints.restore(shapes)
    base = expert.params() if expert.lora.rank and expert.params else None
    if restored is None:
        # given weights have no name here: they would stay beside the state until the last step
        state = init_state(expert.model, optimizer, shapes, init_key,
                           expert.params() if expert.params and base is None else None, expert.head, expert.lora)
    else:
        state, position = restored
        expert.batches.set_state(position)
    done = int(state.step)
    log.cut(done)

    programs: dict[tuple[str, ...], Callable[..., tuple[TrainState, dict[str, jax.Array]]]] = {}

    def program(step: int) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
        objective = expert.objective.at(step)
        if objective.names not in programs:
            step_fn = make_train_step(expert.model, objective, optimizer, timesteps=span, shift=config.shift,
                                      accumulate=config.accumulate, ema_decay=expert.optimizer_config.ema_decay,
                                      first_frame=config.first_frame, head=expert.head, lora=expert.lora)
            programs[objective.names] = jit_train_step(step_fn, shapes)
        return programs[objective.names]

    validate = make_validation(expert.model, timesteps=span, bins=config.validation_bins,
                               first_frame=config.first_frame)

    decoder = expert.objective.decoder
    decoder_params = None if decoder is None else jax.device_put(decoder.params, partition.replicated(expert.mesh))

    title = f"{expert.name} expert" + (f", process {jax.process_index()}" if jax.process_count() > 1 else "")
    clock = StepClock(title, done, config.log_every)
    profiler = ProfilerWindow(log.folder / "profile", config.profile_from, config.profile_steps)

    def read(step: int, metrics: Mapping[str, jax.Array]) -> None:
        values = _finite(expert.name, step, metrics, checkpoints.latest)
        clock.read(step, timed=not profiler.running)
        log.step(step, values)
        if profiler.ends(step):
            with clock.apart("profile"):
                profiler.stop()

    waiting: tuple[int, dict[str, jax.Array]] | None = None
    with stop.listening(), profiler, InputWatch(title, config.batch_timeout) as watch:
        for step in range(done + 1, steps + 1):
            if profiler.begins(step):
                with clock.apart("profile"):
                    profiler.start()
            with watch.batch(step), clock.batch(waiting[1] if waiting else None):
                batch = expert.to_global(next(expert.batches))
            known = len(programs)
            train_step = program(step)
            with (clock.apart("compile") if len(programs) > known else contextlib.nullcontext(),
                  jax.profiler.StepTraceAnnotation("train", step_num=step)):
                state, metrics = train_step(state, batch, step_key, decoder_params, base)
            if waiting:  # read one step late, so that the device never waits for the log
                read(*waiting)
            waiting = (step, metrics)
            last, stopping = step == steps, stop()
            save = last or stopping or step % config.checkpoint_every == 0
            check = last or step % config.validate_every == 0
            preview = expert.preview and config.preview_every and (last or step % config.preview_every == 0)
            if save or check or preview:
                read(*waiting)
                waiting = None
            if check:
                with clock.apart("validation"):
                    log.validation(step, _validation_metrics(validate, shown(state), expert, validation_key, span))
            if preview and expert.preview:
                with clock.apart("preview"):
                    log.image(step, expert.preview(shown(state)))
            if save:
                with clock.apart("checkpoint"):
                    checkpoints.save(step, state, expert.batches.get_state())
                log.throughput(step, clock.save())
            if last or stopping or clock.due:
                log.throughput(clock.step, clock.window(work_of(expert.model.config, batch, expert.mesh.devices.flat,
                                                          expert.lora)))
            if on_step:
                on_step()
            if stopping:
                checkpoints.wait()
                raise Stopped(f"{expert.name}: stopped after step {step} of {steps}; its state is saved")
        checkpoints.wait()
    return state


def _finite(name: str, step: int, metrics: Mapping[str, jax.Array], saved: int | None) -> dict[str, float]:
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    bad = [k for k, v in values.items() if not math.isfinite(v)]
    if bad:
        # name the culprit, not the sum that it spoils
        terms = [k for k in bad if k.startswith("loss/")] or bad
        safe = f"the checkpoint of step {saved} is untouched" if saved else "no checkpoint was written yet"
        where = " in another --workdir, whose config.train.init_from is this one" if saved else ""
        raise Diverged(f"{name} expert, step {step}: {', '.join(f'{k} = {values[k]}' for k in terms)}; {safe}. Look at "
                       "the data of this step and launch again, or with a lower config.optimizer.learning_rate or "
                       f"clip_norm{where}")
    return values


def _validation_metrics(validate: Callable[..., jax.Array], variables: Any, expert: Expert, key: jax.Array,
                        span: tuple[float, float]) -> dict[str, float]:
    losses = np.mean([np.asarray(validate(variables, expert.to_global(batch), jax.random.fold_in(key, i)))
                      for i, batch in enumerate(expert.validation)], axis=0)
    edges = np.linspace(*span, len(losses) + 1)
    bins = {f"validation/velocity/{a:.0f}-{b:.0f}": float(v)
            for a, b, v in zip(edges[:-1], edges[1:], losses, strict=True)}
    return {"validation/velocity": float(losses.mean()), **bins}
