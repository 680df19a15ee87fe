"""Whole pipelines and single networks from one layout into another, tensor by tensor.

Everything is opened and checked before the first byte is written; it is written beside the target under another name
and renamed once it is whole, with a manifest of what is in it (:mod:`wanjax.manifest`).
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from wanjax import checkpoint, hub, hub_names, hub_writing, lora, manifest, warm_start
from wanjax.expert_boundary import BOUNDARIES
from wanjax.family import MEMBERS, member_like
from wanjax.hub_layouts import (
    COMFYUI_FOLDERS,
    EXPERTS,
    INDEX,
    PARTS,
    TOKENIZER,
    is_orbax,
    layout_of,
    open_layout,
    read_index,
)
from wanjax.hub_networks import CastWeights, Network
from wanjax.hub_opening import holds_float8
from wanjax.lora_conversion import LORA, write_loras
from wanjax.models import rows as row_table
from wanjax.models.dit import WanDiT
from wanjax.run_folder import is_remote, run_folder
from wanjax.unfinished import UNFINISHED, beside
from wanjax.weight_files import SUFFIXES

SIDE = ("tokenizer", "scheduler")  # parts that are files to copy
_EXPERT_PARTS = {"high": "transformer", "low": "transformer_2"}
_EXPERTS_OF = {part: name for name, part in _EXPERT_PARTS.items()}
_CLASSES = {
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
}
_VOCABULARY = "spiece.model"
_LUMINANCE = "luminance.json"  # of a codec, docs/light.md
_RESERVE = 64 << 20  # bytes; headers, indexes and what a file system needs for itself


@dataclass(frozen=True)
class Contents:
    """What a source holds.

    Attributes:
        networks: by part, among "transformer" (high noise), "transformer_2", "vae", "text_encoder".
        parts: all that the source has, also those that are not taken.
        files: tokenizer and scheduler folders, and a codec's luminance.json.
        experts: whether its transformers are two experts, even if one of them is not taken.
        boundary: noise level between them; None where it is stated nowhere.
        index: its model_index.json, empty where it has none.
        single: the source is one network, not a pipeline.
        run: the source is a run of ours.
        said: what it is, in words.
    """

    networks: dict[str, Network]
    parts: tuple[str, ...]
    files: dict[str, pathlib.Path] = field(default_factory=dict)
    experts: bool = False
    boundary: float | None = None
    index: dict[str, Any] = field(default_factory=dict)
    single: bool = False
    run: bool = False
    said: str = ""


def convert(
    src: str | os.PathLike[str],
    dst: pathlib.Path,
    *,
    layout: str = "diffusers",
    weights: str = "ema",
    dtype: str | None = None,
    fp8: bool = False,
    loras: Mapping[str, str] | None = None,
    only: Collection[str] = (),
    pth: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Converts a pipeline, a network or a run.

    Args:
        src: a pipeline's root in any layout, one network's folder or file, the name of either on the Hugging Face Hub,
            or a run's workdir (its transformers), which may be ``gs://...``.
        dst: folder to write.
        layout: "diffusers", "official", "comfyui" or "orbax".
        weights: "ema" or "raw", of a run.
        dtype: to store in; None keeps every tensor as it is.
        fp8: with "comfyui": the matrices of the transformers' blocks in 8 bits.
        loras: "high" or "low" -> what :func:`wanjax.lora.parse` takes, merged into that expert, which is then held in
            memory as a whole.
        only: parts to convert; empty is all of them. "lora": of a run that trained one, the factors alone, a file for
            each expert, under the names of "diffusers" or "comfyui"; without it they are merged into the weights that
            they were trained beside.
        pth: with "official": the codec and the text encoder as ``.pth``, through PyTorch.
        say: where lines of progress go.

    Raises:
        FileExistsError: ``dst`` is there.
        FileNotFoundError: a part of the source is missing.
        ImportError: ``pth`` without PyTorch.
        ValueError: anything in the source that does not fit, an option that does not apply, or too little room.
    """
    if layout not in hub.LAYOUTS:
        raise ValueError(f"--layout {layout!r} is not one of {', '.join(hub.LAYOUTS)}")
    if dtype not in (None, *hub.DTYPES):
        raise ValueError(f"--dtype {dtype!r} is not one of {', '.join(hub.DTYPES)}")
    if fp8 and layout != "comfyui":
        raise ValueError(f"--fp8 is of --layout comfyui alone; {layout} keeps the weights' own type")
    if unknown := sorted(set(only) - {*PARTS, LORA}):
        raise ValueError(f"--only {unknown[0]}: the parts are {', '.join((*PARTS, LORA))}")
    if LORA in only:
        given = {"--lora_high or --lora_low": loras, "--fp8": fp8, "--pth": pth, "other parts": set(only) - {LORA}}
        if any(given.values()):
            raise ValueError(f"--only {LORA} writes the factors alone: leave out "
                             f"{', '.join(name for name, value in given.items() if value)}")  # fmt: skip
        return write_loras(run_folder(src), dst, layout, weights, dtype, say)
    files = {_EXPERT_PARTS[name]: lora.parse(text) for name, text in (loras or {}).items()}
    if dst.exists():
        raise FileExistsError(f"--dst {dst} exists: remove it or name another")
    place = run_folder(src) if is_remote(src) else hub_names.resolve(src, parts=tuple(only) or None)
    contents = open_contents(place, weights=weights, wide=dtype is not None, fp8=fp8, only=only)
    for name, part in _EXPERT_PARTS.items():
        if part in files and part not in contents.networks:
            raise ValueError(
                f"--lora_{name}: {src} has no {name}-noise expert, only {', '.join(contents.networks)}"
            )
    if fp8 and not {"transformer", "transformer_2"} & contents.networks.keys():
        raise ValueError(f"--fp8 is of transformers alone; of {src} only {', '.join(contents.networks)} are taken")
    stored = {part: _cast(network, dtype) for part, network in contents.networks.items()}
    for part, network in stored.items():
        for file, _ in files.get(part, ()):
            # refuses one that does not fit, before any time is spent
            lora.read_lora(file, network.rows, expert=_EXPERTS_OF[part])
        if layout == "orbax":
            for row in network.rows:
                network.dtype_of(row)
    as_pth = [part for part, network in stored.items() if pth and network.kind != "transformer"]
    if pth and not as_pth:
        raise ValueError(f"--pth is of the codec and the text encoder; of {src} only {', '.join(stored)} are taken")
    for part in as_pth:
        hub_writing.check_pth(stored[part], layout)
    _check_room(stored, contents.files, dst, fp8)
    say(contents.said)
    with beside(dst) as part_folder:
        for part, network in contents.networks.items():
            if part in files:
                network = _merged(part, network, files[part], say)
            where = _write(contents, part, _cast(network, dtype), part_folder, layout, fp8, part in as_pth, say)
            say(f"{part}: {row_table.count(network.rows)} parameters in {where}")
        _write_rest(contents, part_folder, layout, say)
        (part_folder / UNFINISHED).unlink()
        merged = {part: [[str(file), weight] for file, weight in of] for part, of in files.items()}
        manifest.write(part_folder, layout=layout, source=str(src), dtype=dtype, fp8=fp8, loras=merged)
        part_folder.rename(dst)


def open_contents(
    src: pathlib.Path, *, weights: str = "ema", wide: bool = False, fp8: bool = False, only: Collection[str] = ()
) -> Contents:
    """Opens and checks everything that is to be converted; reads no weights, but for a run's.

    Args:
        src, weights, fp8, only: as of :func:`convert`.
        wide: 8-bit weights are read in float32, to be rounded to another type.

    Raises: as :func:`convert`.
    """
    if is_remote(src) or checkpoint.is_run(src):
        contents = _of_run(src, weights)
    elif weights == "raw":
        raise ValueError(f"--weights raw: the release {src} has one set of weights; leave the flag out")
    else:
        contents = _of_release(src, wide, fp8, only)
    if absent := [part for part in only if part not in contents.parts]:
        raise ValueError(f"--only {absent[0]}: {src} has none, only {', '.join(contents.parts)}")
    chosen = set(only or PARTS)
    networks = {part: network for part, network in contents.networks.items() if part in chosen}
    files = {name: path for name, path in contents.files.items() if {"luminance": "vae"}.get(name, name) in chosen}
    return replace(contents, networks=networks, files=files)


def _of_run(src: pathlib.Path, weights: str) -> Contents:
    run = checkpoint.open_run(src, weights)
    networks = {
        _EXPERT_PARTS[name]: hub.network_of(
            WanDiT(run.config.model), warm_start.weights_of(saved).read(None, "float32"))
        for name, saved in run.experts.items()
    }
    return Contents(networks, tuple(networks), experts=True, run=True, said=run.description)


def _of_release(src: pathlib.Path, wide: bool, fp8: bool, only: Collection[str]) -> Contents:
    layout = layout_of(src) if src.is_dir() else None
    parts: dict[str, Any]
    if layout is not None:
        parts = open_layout(src)
    else:
        parts = {name: src / name for name in PARTS if (src / name).is_dir()}  # diffusers' folders without an index
        if not parts.keys() - set(SIDE):
            parts = {}
    if parts.keys() - {"boundary_ratio"} == {"vae"} and layout == "official":
        parts = {}  # the official codec on its own
    if not parts:
        if src.is_dir() and not is_orbax(src) and not any(file.suffix in SUFFIXES for file in src.iterdir()):
            raise ValueError(
                f"--src {src} is neither a run nor a pipeline's root, and holds no network: expected {INDEX}, "
                f"{', '.join(EXPERTS.values())}, diffusion_models/ or weights ({', '.join(SUFFIXES)})"
            )
        network = _open(src, None, wide, fp8)
        return Contents({network.kind: network}, (network.kind,), single=True,
                        said=f"one network in {src}: {network.kind}")  # fmt: skip
    boundary = parts.pop("boundary_ratio", None)
    networks = {
        part: _open(parts[part], "transformer" if part in _EXPERT_PARTS.values() else part, wide, fp8)
        for part in PARTS
        if part in parts and part not in SIDE and (not only or part in only)
    }
    if not networks and not only:
        raise ValueError(f"--src {src} holds no network")
    files = {name: parts[name] for name in SIDE if name in parts}
    if "vae" in parts and (parts["vae"] / _LUMINANCE).is_file():
        files["luminance"] = parts["vae"] / _LUMINANCE
    present = tuple(name for name in PARTS if name in parts)
    return Contents(networks, present, files, experts="transformer_2" in parts, boundary=boundary,
                    index=read_index(src) if (src / INDEX).is_file() else {},
                    said=f"{f'{layout} layout' if layout else 'networks'} in {src}: {', '.join(present)}")  # fmt: skip


def _open(path: pathlib.Path, kind: str | None, wide: bool, fp8: bool) -> Network:
    eight = holds_float8(path)
    # what 8 bits stand for is then known exactly, and rounding it is measured like any other
    network = hub.open_network(path, kind, dtype="float32" if eight and wide else None)
    if eight and not wide and not (fp8 and network.kind == "transformer"):
        raise ValueError(
            f"{path} holds 8-bit floats: say what to write, --dtype bfloat16 (or another), or of a transformer "
            "--layout comfyui --fp8"
        )
    return network


def _merged(
    part: str, network: Network, files: Collection[tuple[pathlib.Path, float]], say: Callable[[str], None]
) -> Network:
    """A transformer in memory, with LoRA files added in its own type."""
    params, merged = lora.merge_files(network.place(), network.rows, files, expert=_EXPERTS_OF[part], donate=True)
    say(f"{part}: merged {', '.join('{file} x {weight}'.format(**one) for one in merged)}")
    return hub.network_of(WanDiT(network.config), params)


def _cast(network: Network, dtype: str | None) -> Network:
    """The network as it is to be stored."""
    if dtype is None or all(spec.dtype == dtype for spec in network.specs("official").values()):
        return network
    config = replace(network.config, dtype=dtype, param_dtype=dtype)
    return replace(network, config=config, weights=CastWeights(network.weights, dtype))


def _check_room(
    networks: Mapping[str, Network], files: Mapping[str, pathlib.Path], dst: pathlib.Path, fp8: bool
) -> None:
    parent = dst.absolute().parent
    while not parent.exists():
        parent = parent.parent
    needed = sum(hub_writing.written_bytes(network, fp8=fp8) for network in networks.values())
    for path in files.values():
        needed += sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
    free = shutil.disk_usage(parent).free
    if needed + _RESERVE > free:
        raise ValueError(
            f"--dst {dst} takes {needed / 1e9:.2f} GB, and {parent} has {free / 1e9:.2f} GB left: make room, take "
            "another disk, or convert parts with --only"
        )


def _write(
    contents: Contents,
    part: str,
    network: Network,
    root: pathlib.Path,
    layout: str,
    fp8: bool,
    pth: bool,
    say: Callable[[str], None],
) -> str:
    """Writes one network and says how much each lossy step changed it; where it lies."""
    folder, stem = _place(contents, part, layout)
    eight = fp8 and network.kind == "transformer"
    vocabulary = contents.files.get("tokenizer", pathlib.Path()) / _VOCABULARY
    error = hub.save_network(
        root / folder, network, layout=layout, stem=stem, max_shard_bytes=hub_writing.SHARD_BYTES, fp8=eight, pth=pth,
        vocabulary=vocabulary.read_bytes() if part == "text_encoder" and vocabulary.is_file() else None,
    )  # fmt: skip
    errors = {"8-bit storage": error} if eight else {}
    if isinstance(network.weights, CastWeights) and network.weights.relative_error:
        errors = {f"rounding to {network.weights.dtype}": network.weights.relative_error, **errors}
    for what, value in errors.items():
        say(f"{part}: {what} changed the weights by {value:.3g} (relative, root mean square)")
    return folder.as_posix() + "/" if folder.parts else "the folder itself"


def _place(contents: Contents, part: str, layout: str) -> tuple[pathlib.PurePath, str | None]:
    """Folder under the root and, if it is not the layout's own, the name of the file."""
    if contents.single:
        return pathlib.PurePath(), None
    transformer = part in _EXPERT_PARTS.values()
    if layout == "official":
        return pathlib.PurePath(EXPERTS[part] if transformer and contents.experts else ""), None
    if layout == "comfyui":
        return pathlib.PurePath(COMFYUI_FOLDERS[part]), EXPERTS[part] if transformer and contents.experts else None
    return pathlib.PurePath(part), None


def _write_rest(contents: Contents, root: pathlib.Path, layout: str, say: Callable[[str], None]) -> None:
    """Everything of a pipeline but its networks."""
    if contents.single or contents.run:
        return
    written = set(contents.networks)
    if "tokenizer" in contents.files:
        target = root / (TOKENIZER if layout == "official" else "tokenizer")
        shutil.copytree(contents.files["tokenizer"], target)
        written.add("tokenizer")
        if layout == "comfyui" and not (target / _VOCABULARY).is_file():
            say(f"the tokenizer has no {_VOCABULARY}, which ComfyUI wants among the text encoder's tensors")
    if layout not in ("diffusers", "orbax"):
        return
    if "luminance" in contents.files:
        shutil.copy2(contents.files["luminance"], root / "vae" / _LUMINANCE)
    models = [contents.networks[part].config for part in _EXPERT_PARTS.values() if part in contents.networks]
    if "scheduler" in contents.files:
        shutil.copytree(contents.files["scheduler"], root / "scheduler")
        written.add("scheduler")
    elif models:
        (root / "scheduler").mkdir()
        _write_json(root / "scheduler" / "scheduler_config.json", _scheduler(_member(contents).sample.shift))
        written.add("scheduler")
    _write_json(root / INDEX, _index(contents, written))


def _member(contents: Contents) -> Any:
    """The member of the family whose settings hold: as many transformers as the source has, of these channels."""
    model = next(contents.networks[part].config for part in _EXPERT_PARTS.values() if part in contents.networks)
    return member_like([model] * (2 if contents.experts else 1))


def _index(contents: Contents, written: Collection[str]) -> dict[str, Any]:
    """``model_index.json``: the source's, or that of the published pipeline of the same kind; of what is there."""
    index = dict(contents.index)
    if not index:
        models = [contents.networks[part].config for part in _EXPERT_PARTS.values() if part in contents.networks]
        image = bool(models) and models[0].in_channels != models[0].out_channels
        boundary = contents.boundary
        if boundary is None and contents.experts:
            boundary = BOUNDARIES["i2v" if image else "t2v"]
        frames_given = bool(models) and models[0].out_channels == MEMBERS["Wan2.2-TI2V-5B"].model.out_channels
        index = {"_class_name": "WanImageToVideoPipeline" if image else "WanPipeline", "boundary_ratio": boundary,
                 "expand_timesteps": frames_given}  # fmt: skip
        if image:
            index |= {"image_encoder": [None, None], "image_processor": [None, None]}
    tokenizer = contents.files.get("tokenizer", pathlib.Path()) / "tokenizer_config.json"
    for part, classes in _CLASSES.items():
        if part not in written:
            index[part] = [None, None]
        elif not any(index.get(part) or ()):
            index[part] = classes
            if part == "tokenizer" and tokenizer.is_file():
                own = json.loads(tokenizer.read_text(encoding="utf-8")).get("tokenizer_class")
                index[part] = [classes[0], own or classes[1]]
    return index


def _scheduler(shift: float) -> dict[str, Any]:
    """UniPC as the published diffusers folders set it, with the shift of the reference."""
    return {
        "_class_name": "UniPCMultistepScheduler",
        "num_train_timesteps": 1000,
        "solver_order": 2,
        "solver_type": "bh2",
        "predict_x0": True,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": shift,
        "final_sigmas_type": "zero",
        "lower_order_final": True,
        "timestep_spacing": "linspace",
    }


def _write_json(file: pathlib.Path, record: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

