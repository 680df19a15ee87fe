"""The optimizer: AdamW through optax with clipping, warm-up and decay; and the moving average of the weights.

Moments and average may lie in host memory, as :func:`wanjax.train.state_shapes` places them: what works on them sees it
from the arrays, and takes them to the device layer by layer.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from wanjax.models import streaming

MEMORIES = ("device", "host")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter, 2019), or Muon (Jordan et al., 2024) for the blocks' matrices, and the schedule.

    Attributes:
      name: "adamw", or "muon": the blocks' matrices move along their orthogonalised momentum, all else by AdamW.
      muon_rms: root mean square of a matrix's update, in learning rates; 0.2 is AdamW's usual (Liu et al., 2025).
      learning_rate: the peak, after warm-up.
      warmup_steps: linear from 0.
      decay: "constant", "cosine" or "linear", from the end of warm-up to the last step.
      final_fraction: of the peak, where the decay ends.
      b1, b2, eps, weight_decay: of AdamW; weight decay applies to matrices only, not to biases, norms or tables.
      clip_norm: global gradient norm above which gradients are scaled down.
      ema_decay: of the moving average; early steps use (1 + step) / (10 + step) where that is smaller. 0: none is kept.
      state_memory: where moments and average of the stack's matrices lie between steps: "device", or "host", the hosts'
        pinned memory, from which they pass through the device layer by layer. Changes no value.
    """

    name: str = "adamw"
    learning_rate: float = 1e-4
    warmup_steps: int = 100
    decay: str = "constant"
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    muon_rms: float = 0.2
    state_memory: str = "device"

    def __post_init__(self) -> None:
        if self.name not in ("adamw", "muon"):
            raise ValueError(f"name = {self.name!r}: expected 'adamw' or 'muon'")
        if self.decay not in ("constant", "cosine", "linear"):
            raise ValueError(f"decay = {self.decay!r}: expected 'constant', 'cosine' or 'linear'")
        if self.state_memory not in MEMORIES:
            raise ValueError(f"state_memory = {self.state_memory!r}: expected one of {', '.join(MEMORIES)}")
        if self.learning_rate <= 0 or self.clip_norm <= 0 or self.muon_rms <= 0:
            raise ValueError(f"learning_rate = {self.learning_rate}, clip_norm = {self.clip_norm}, muon_rms = "
                             f"{self.muon_rms}: expected > 0")
        if not (0 <= self.ema_decay < 1 and 0 <= self.b1 < 1 and 0 <= self.b2 < 1):
            raise ValueError(f"ema_decay = {self.ema_decay}, b1 = {self.b1}, b2 = {self.b2}: expected in [0, 1)")
        if self.warmup_steps < 0 or self.weight_decay < 0 or not 0 <= self.final_fraction <= 1:
            raise ValueError(f"warmup_steps = {self.warmup_steps}, weight_decay = {self.weight_decay}, final_fraction "
                             f"= {self.final_fraction}: expected ≥ 0, ≥ 0 and in [0, 1]")

    @property
    def averaged(self) -> bool:
        """Whether a moving average of the parameters is kept."""
        return self.ema_decay > 0


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The schedule over ``steps`` optimizer steps."""
    peak, rest = config.learning_rate, max(steps - config.warmup_steps, 1)
    final = peak * config.final_fraction
    after = {"constant": lambda: optax.constant_schedule(peak),
             "cosine": lambda: optax.cosine_decay_schedule(peak, rest, config.final_fraction),
             "linear": lambda: optax.linear_schedule(peak, final, rest)}[config.decay]()
    if config.warmup_steps == 0:
        return after
    warm = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warm, after], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int, decay_mask: Any, stacked: Any) -> optax.GradientTransformation:
    """Clip → AdamW or Muon.

    Args:
      config: see ``OptimizerConfig``.
      steps: optimizer steps of the whole run, for the schedule.
      decay_mask: tree of bool like the parameters, True where weight decay applies.
      stacked: tree of bool like the parameters, True for the matrices [layers, in, out] that Muon is for.
    """
    rate, clip = learning_rate(config, steps), optax.clip_by_global_norm(config.clip_norm)
    adamw = optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=decay_mask)
    if config.name == "adamw":
        return optax.chain(clip, streamed(adamw))
    # one specification for every tensor that Muon is given: matrices [layers, in, out], each layer by itself
    per_layer = lambda params: jax.tree.map(
        lambda p: optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2), params)
    muon = optax.contrib.muon(rate, weight_decay=config.weight_decay, consistent_rms=config.muon_rms,
                              muon_weight_dimension_numbers=per_layer)
    return optax.chain(clip, streamed(optax.partition({"muon": muon, "adamw": adamw},
                                                      jax.tree.map(lambda yes: "muon" if yes else "adamw", stacked))))


def owner(path: Sequence[Any], parameters: Collection[Any]) -> Any:
    """Whose state this is: of the paths of parameters, the one that a path in an optimizer's state ends in, or None."""
    return next((path[i:] for i in range(len(path)) if path[i:] in parameters), None)


def streamed(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """``inner``, layer by layer for the parameters that have state in host memory; their updates take the gradients'
    place. Without any it is ``inner``.

    Args:
      inner: works on every parameter by itself, and on every layer of those [layers, ...].
    """

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        paths = {path for path, _ in jax.tree.leaves_with_path(gradients)}
        away = {owner(path, paths) for path, leaf in jax.tree.leaves_with_path(state) if streaming.is_on_host(leaf)}
        if not away:
            return inner.update(gradients, state, params)

        def only(tree: Any, *, far: bool = False, near: bool = False, shared: bool = False) -> Any:
            """Of the tree what is far, near, or of no parameter, such as counts; optax passes over the rest."""
            def kept(path: Any) -> bool:
                of = owner(path, paths)
                return shared if of is None else far if of in away else near

            return jax.tree.map_with_path(lambda path, x: x if kept(path) else optax.MaskedNode(), tree)

        def layer(own: Any, params: Any) -> Any:
            gradients, moments = own
            whole = _joined(only(state, far=True, shared=True), moments, only(state, shared=True))
            updates, changed = inner.update(gradients, whole, params)
            return updates, only(changed, far=True)

        updates, others = inner.update(only(gradients, near=True), only(state, near=True, shared=True),
                                       only(params, near=True))
        stacks = only(gradients, far=True), only(state, far=True)
        far_updates, moments = streaming.replace(layer, stacks, only(params, far=True))
        return _joined(gradients, updates, far_updates), _joined(state, others, moments)

    return optax.GradientTransformation(inner.init, update)


def _joined(like: Any, *parts: Any) -> Any:
    """A tree like the first one of the leaves of the others, each of which has some."""
    leaves = {path: leaf for part in parts for path, leaf in jax.tree.leaves_with_path(part)}
    return jax.tree.map_with_path(lambda path, _: leaves[path], like)


def update_ema(ema: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """One step of the moving average, computed in the average's own dtype.

    Args:
      ema, params: trees of the same shapes.
      step: scalar, steps done before this one.
      decay: the limit; (1 + step) / (10 + step) while that is smaller.
    """
    rate = 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))

    def follow(ema: Any, params: Any) -> Any:
        return jax.tree.map(lambda e, p: e + (rate * (p - e)).astype(e.dtype), ema, params)

    (leaves, tree), targets = jax.tree.flatten(ema), jax.tree.leaves(params)
    far = [i for i, leaf in enumerate(leaves) if streaming.is_on_host(leaf)]
    moved = streaming.replace(follow, [leaves[i] for i in far], [targets[i] for i in far]) if far else []
    new = dict(zip(far, moved, strict=True))
    return jax.tree.unflatten(tree, [new[i] if i in new else follow(e, p)
                                     for i, (e, p) in enumerate(zip(leaves, targets, strict=True))])
