"""The programs of a peer, MaxDiffusion, at the shapes of ``scale_memory.py``: compiled from a checkout, never run.

    git clone https://github.com/AI-Hypercomputer/maxdiffusion
    python benchmarks/scale_memory.py --peer maxdiffusion --peer_python VENV/bin/python

That calls this file, in an environment of Python 3.12 with jax and libtpu as here, and of the peer's requirements aqtp,
datasets, einops, flax, ftfy, google-cloud-storage, grain, imageio, jaxopt, opencv-python-headless, optax,
orbax-checkpoint, qwix, scikit-image, tensorboardX, tensorflow, tensorflow-datasets, torch and transformers<5.

The programs are the peer's own: the training step of its ``WanTrainer`` with its optimizer, and the denoising forward
of its pipeline, with its published configs of the 14 B network but for the fields in :data:`CASES`. Weights and batches
are shapes alone. Figures are read off the compiled program as those of this library are.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp

from wanjax import collectives, executed, hlo, partition, topology
from wanjax.compiled_memory import compile_with_memory, text_of

HEIGHT, WIDTH, FRAMES = 720, 1280, 81
LATENTS = (16, 1 + (FRAMES - 1) // 4, HEIGHT // 8, WIDTH // 8)  # C, F, h, w
TOKENS = LATENTS[1] * (LATENTS[2] // 2) * (LATENTS[3] // 2)
TEXT = (512, 4096)
# by case of scale_memory.py: clips, and fields of the peer's config
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "a": ("v5p:4x4x4", 16, {"ici_fsdp_parallelism": 16, "ici_context_parallelism": 4, "remat_policy": "FULL"}),
    "b": ("v5p:4x4x4", 64, {"ici_fsdp_parallelism": 64, "ici_context_parallelism": 1,
                            "remat_policy": "HIDDEN_STATE_WITH_OFFLOAD"}),
    "d_v6e": ("v6e:2x4", 1, {"ici_context_parallelism": 8}),
    "d_v5p": ("v5p:2x2x1", 1, {"ici_context_parallelism": 4}),
}  # fmt: skip
TRAINED = ("a", "b")


def programs(folder: Path, name: str, more: dict[str, str]) -> tuple[jax.stages.Lowered, Any, Any]:
    """The program of a case, with ``more`` fields of its config, its arguments' shapes and its mesh."""
    where, clips, fields = CASES[name]
    sys.path.insert(0, str(folder / "src"))
    from flax import linen as nn
    from flax import nnx
    from flax.linen import partitioning
    from maxdiffusion import max_utils, pyconfig
    from maxdiffusion.models.wan.transformers.transformer_wan import WanModel
    from maxdiffusion.pipelines.wan.wan_pipeline import cast_with_exclusion

    devices = topology.devices(topology.parse(where))
    config_file = folder / "src/maxdiffusion/configs" / ("base_wan_14b.yml" if name in TRAINED else "base_wan_27b.yml")
    # the peer counts the devices that are there
    given = {"run_name": "compiled", "skip_jax_distributed_system": True, "per_device_batch_size": clips, **fields,
             **more}  # fmt: skip
    pyconfig.initialize([None, str(config_file), *(f"{key}={value}" for key, value in given.items())], unittest=True)
    config = pyconfig.config
    config.get_keys().update(global_batch_size_to_load=max(clips, len(devices)), global_batch_size_to_train_on=clips)
    mesh = jax.sharding.Mesh(max_utils.create_device_mesh(config, devices), config.mesh_axes)

    def network(rngs: Any) -> Any:
        """As its pipeline makes it."""
        return WanModel(
            rngs=rngs, mesh=mesh, dtype=config.activations_dtype, weights_dtype=config.weights_dtype,
            attention=config.attention, precision=max_utils.get_precision(config),
            flash_block_sizes=max_utils.get_flash_block_sizes(config), remat_policy=config.remat_policy,
            names_which_can_be_saved=config.names_which_can_be_saved,
            names_which_can_be_offloaded=config.names_which_can_be_offloaded,
            flash_min_seq_length=config.flash_min_seq_length, dropout=config.dropout,
            mask_padding_tokens=config.mask_padding_tokens, scan_layers=config.scan_layers,
            enable_jax_named_scopes=config.enable_jax_named_scopes,
            attention_config={
                "use_base2_exp": config.use_base2_exp,
                "use_experimental_scheduler": config.use_experimental_scheduler,
                "ulysses_shards": config.ulysses_shards,
                "ulysses_attention_chunks": config.ulysses_attention_chunks,
            },
        )  # fmt: skip

    with mesh, partitioning.axis_rules(config.logical_axis_rules):
        graph, params, rest = nnx.split(nnx.eval_shape(network, nnx.Rngs(0)), nnx.Param, ...)
        places = nn.logical_to_mesh_sharding(nnx.get_partition_spec(params), mesh, config.logical_axis_rules)
        params = jax.eval_shape(
            lambda params: jax.tree_util.tree_map_with_path(
                lambda path, x: cast_with_exclusion(path, x, dtype_to_cast=config.weights_dtype), params
            ),
            params,
        )
        params = partition.placed_shapes(params, places)
        run = _training if name in TRAINED else _forward
        return (*run(config, mesh, graph, params, rest, clips), mesh)


def _forward(config: Any, mesh: Any, graph: Any, params: Any, rest: Any, clips: int) -> tuple[Any, Any]:
    """Its inputs on every device, and rotary tables made once, as its pipeline has them."""
    from flax import nnx
    from maxdiffusion.pipelines.wan.wan_pipeline import transformer_forward_pass

    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    channels, *size = LATENTS
    latent = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    rotary = jax.eval_shape(nnx.merge(graph, params, rest).rope, latent)
    given = (
        rest, jax.ShapeDtypeStruct((clips, *LATENTS), jnp.float32), jax.ShapeDtypeStruct((clips,), jnp.int32),
        jax.ShapeDtypeStruct((clips, *TEXT), jnp.float32), rotary,
    )  # fmt: skip
    given = partition.placed_shapes(given, everywhere)

    def step(params: Any, rest: Any, latents: Any, timestep: Any, text: Any, rotary: Any) -> Any:
        return transformer_forward_pass(graph, params, rest, latents, timestep, text, rotary_emb=rotary,
                                        do_classifier_free_guidance=False, guidance_scale=1.0)  # fmt: skip

    return jax.jit(step).lower(params, *given), (params, given)


def _training(config: Any, mesh: Any, graph: Any, params: Any, rest: Any, clips: int) -> tuple[Any, Any]:
    from flax import nnx
    from maxdiffusion import max_utils
    from maxdiffusion.schedulers import FlaxFlowMatchScheduler
    from maxdiffusion.trainers.base_wan_trainer import TrainState
    from maxdiffusion.trainers.wan_trainer import WanTrainer

    schedule = max_utils.create_learning_rate_schedule(
        config.learning_rate, config.learning_rate_schedule_steps, config.warmup_steps_fraction, config.max_train_steps
    )
    optimizer = max_utils.create_optimizer(config, schedule)

    def made(params: Any) -> Any:
        return TrainState.create(apply_fn=graph.apply, params=params, tx=optimizer, graphdef=graph, rest_of_state=rest)

    state = jax.eval_shape(made, params)
    places = nnx.get_named_sharding(state, mesh)
    state = partition.placed_shapes(state, places)
    trainer = types.SimpleNamespace(config=config)
    scheduler = FlaxFlowMatchScheduler(dtype=jnp.float32)
    batch = {"latents": LATENTS, "encoder_hidden_states": TEXT}
    of_batch = WanTrainer.get_data_shardings(trainer, mesh)
    batch = {key: jax.ShapeDtypeStruct((config.global_batch_size_to_load, *shape), jnp.float32, sharding=of_batch[key])
             for key, shape in batch.items()}  # fmt: skip
    step = WanTrainer.get_train_step(trainer, types.SimpleNamespace(scheduler=scheduler), mesh, places, of_batch)
    key = jax.eval_shape(lambda: jax.random.key(0))
    states = jax.eval_shape(
        lambda: scheduler.set_timesteps(scheduler.create_state(), num_inference_steps=1000, training=True)
    )
    return step.lower(state, batch, key, states), state


def measured(folder: Path, name: str, more: dict[str, str]) -> dict[str, Any]:
    """Figures by the names that a plan has for them; ``executed_flops`` is None where a kernel's are not known."""
    where, clips, _ = CASES[name]
    commit = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode:
        sys.exit(f"error: {folder} is no checkout of git: figures are of a commit; clone the peer's repository there")
    machine = topology.parse(where)
    topology.prepare(machine)
    started = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its config
        lowered, arguments, mesh = programs(folder, name, more)
    with tempfile.TemporaryDirectory() as made:
        dump = Path(made) if machine.chip and machine.chip.dumped else None
        compiled, memory = compile_with_memory(lowered, arguments, dump=dump)
        text = None if compiled is None else text_of(compiled, dump)
    if text is None:
        sys.exit(f"error: the peer's program of {name} takes {memory.peak / 1e9:.1f} GB, or cannot be read")
    module = hlo.parse(text)
    work = executed.count(module)
    unknown = [call for call in work.unknown_calls if not call.startswith("X64")]  # complex numbers in two parts
    return {
        "argument_bytes": memory.arguments, "temp_bytes": memory.temporary, "peak_bytes_per_device": memory.peak,
        "host_bytes": memory.host, "collective_bytes": collectives.of(module, mesh.size).bytes,
        "attention_kernels": [vars(kernel) for kernel in work.kernels], "clips": clips, "tokens": TOKENS,
        "devices": mesh.size, "executed_flops": None if unknown else work.flops * mesh.size, "unknown_calls": unknown,
        "commit": commit.stdout.strip(),
        "processor_seconds": round(time.process_time() - started),
    }  # fmt: skip


if __name__ == "__main__":
    of, case, *words = sys.argv[1:]
    print(json.dumps(measured(Path(of), case, dict(word.split("=", 1) for word in words))))
