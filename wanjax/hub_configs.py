"""``config.json`` of foreign layouts <-> our configs. Tensors that are there settle what a config leaves out."""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from wanjax.models.dit import DiTConfig
from wanjax.models.rows.dit import dit_rows
from wanjax.models.rows.umt5 import umt5_rows
from wanjax.models.rows.vae import vae_rows
from wanjax.models.umt5 import UMT5Config
from wanjax.models.vae import WAN22, VAEConfig

_Json = Mapping[str, Any]
_Shapes = Mapping[str, tuple[int, ...]]

# Settings of which we have exactly one value: any other describes a network that is not built here.
_DIT_FIXED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("WanTransformer3DModel", "WanModel"),
    "model_type": ("t2v", "i2v", "ti2v"),
    "cross_attn_norm": (True,),
    "qk_norm": ("rms_norm_across_heads", True),
    "window_size": ([-1, -1],),
    "image_dim": (None,),
    "added_kv_proj_dim": (None,),
    "pos_embed_seq_len": (None,),
    "add_img_emb": (False,),
}
_VAE_FIXED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("AutoencoderKLWan",),
    "attn_scales": ([],),
    "scale_factor_temporal": (4,),
}
_UMT5_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("umt5",),
    "feed_forward_proj": ("gated-gelu",),
    "dense_act_fn": ("gelu_new",),
    "is_gated_act": (True,),
}
# Settings that do not touch what the network computes.
_DIT_INERT = ("text_len", "rope_max_seq_len", "attention_head_dim", "dim")
_VAE_INERT = ("dropout", "clip_output")
_UMT5_INERT = (
    "architectures", "bos_token_id", "classifier_dropout", "decoder_start_token_id", "dropout_rate", "dtype",
    "eos_token_id", "initializer_factor", "is_decoder", "is_encoder_decoder", "num_decoder_layers", "output_past",
    "pad_token_id", "scalable_attention", "tie_word_embeddings", "tokenizer_class", "torch_dtype",
    "transformers_version", "use_cache", "n_positions",
)  # fmt: skip

# Our field -> its foreign names, diffusers' first.
_DIT_FIELDS = {
    "heads": ("num_attention_heads", "num_heads"),
    "layers": ("num_layers",),
    "ffn": ("ffn_dim",),
    "in_channels": ("in_channels", "in_dim"),
    "out_channels": ("out_channels", "out_dim"),
    "patch": ("patch_size",),
    "freq_dim": ("freq_dim",),
    "text_dim": ("text_dim",),
    "eps": ("eps",),
}
_VAE_FIELDS = {
    "base_dim": "base_dim",
    "decoder_base_dim": "decoder_base_dim",
    "z_dim": "z_dim",
    "dim_mult": "dim_mult",
    "num_res_blocks": "num_res_blocks",
    "temporal_downsample": "temperal_downsample",  # diffusers' spelling
    "latents_mean": "latents_mean",
    "latents_std": "latents_std",
    "patch": "patch_size",
    "residual": "is_residual",
}
_UMT5_FIELDS = (
    "vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers", "relative_attention_num_buckets",
    "relative_attention_max_distance", "layer_norm_epsilon",
)  # fmt: skip

# Field -> our tensor and the axis of its foreign form ([out, in] for a linear layer) that shows it.
_DIT_SHAPES: dict[str, tuple[tuple[str, ...], int]] = {
    "text_dim": (("text_embedding", "in", "kernel"), 1),
    "freq_dim": (("time_embedding", "in", "kernel"), 1),
    "ffn": (("blocks", "ffn", "in", "kernel"), 0),
    "out_channels": (("head", "projection", "kernel"), 0),
}
# Foreign names do not depend on sizes, so a small network's rows tell them.
_DIT_ROWS = {row.path: row for row in dit_rows(DiTConfig(width=128, heads=1, layers=1, ffn=128))}
_WAN_HEAD_DIM = 128  # of every published Wan transformer


def dit_config(stored: _Json, naming: str, shapes: _Shapes, source: pathlib.Path) -> tuple[DiTConfig, list[str]]:
    """Sizes of a transformer from its config where it states them, otherwise from its tensors.

    Args:
        stored: ``config.json``, may be empty.
        naming: "diffusers" or "official".
        shapes: of the foreign tensors by name.
        source: named in errors.

    Returns:
        The config, and the settings in ``stored`` that mean nothing to us.

    Raises:
        ValueError: a setting that we do not build, or a size that is neither stated nor to be seen.
    """
    _refuse_other(stored, _DIT_FIXED, source)
    values: dict[str, Any] = {}
    for field, names in _DIT_FIELDS.items():
        for name in names:
            if stored.get(name) is not None:
                values[field] = stored[name]
    first = {path: row.foreign_names(naming)[0] for path, row in _DIT_ROWS.items()}
    embedding = shapes.get(first["patch_embedding", "kernel"])  # [D, C, pt, ph, pw]
    width = stored.get("dim") or (embedding[0] if embedding else None)
    if width is None and "heads" in values and "attention_head_dim" in stored:
        width = values["heads"] * stored["attention_head_dim"]
    if width is None:
        raise ValueError(f"{source}: no tensor {first['patch_embedding', 'kernel']} and no width in config.json")
    if embedding is not None and len(embedding) == 5:
        values.setdefault("in_channels", embedding[1])
        values.setdefault("patch", embedding[2:])
    values["patch"] = tuple(values.get("patch", DiTConfig.patch))
    for field, (path, axis) in _DIT_SHAPES.items():
        shape = shapes.get(first[path], ())
        if field not in values and len(shape) > axis:
            values[field] = shape[axis] // math.prod(values["patch"]) if field == "out_channels" else shape[axis]
    values.setdefault("layers", _layers(getattr(_DIT_ROWS["blocks", "ffn", "in", "kernel"], naming), shapes))
    if "heads" not in values:
        if width % _WAN_HEAD_DIM:
            raise ValueError(
                f"{source}: no config.json states the heads, and width {width} is not a multiple of Wan's head size "
                f"{_WAN_HEAD_DIM}: add a config.json with num_heads"
            )
        values["heads"] = width // _WAN_HEAD_DIM
    head_dim = stored.get("attention_head_dim")
    if head_dim is not None and head_dim * values["heads"] != width:
        raise ValueError(
            f"{source}: config.json states {values['heads']} heads of {head_dim}, but the network is {width} wide"
        )
    if "ffn" not in values:
        raise ValueError(f"{source}: no feed-forward tensor and no ffn_dim in config.json")
    known = {name for names in _DIT_FIELDS.values() for name in names}
    return DiTConfig(width=width, **values), _unused(stored, known, _DIT_FIXED, _DIT_INERT)


def dit_json(config: DiTConfig, naming: str) -> dict[str, Any]:
    """``config.json`` of a transformer in the diffusers or official naming."""
    if naming == "diffusers":
        return {
            "_class_name": "WanTransformer3DModel",
            "patch_size": list(config.patch),
            "num_attention_heads": config.heads,
            "attention_head_dim": config.width // config.heads,
            "in_channels": config.in_channels,
            "out_channels": config.out_channels,
            "text_dim": config.text_dim,
            "freq_dim": config.freq_dim,
            "ffn_dim": config.ffn,
            "num_layers": config.layers,
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
            "eps": config.eps,
            "image_dim": None,
            "added_kv_proj_dim": None,
            "rope_max_seq_len": 1024,
            "pos_embed_seq_len": None,
        }
    return {
        "_class_name": "WanModel",
        "model_type": "t2v" if config.in_channels == config.out_channels else "i2v",
        "patch_size": list(config.patch),
        "dim": config.width,
        "ffn_dim": config.ffn,
        "freq_dim": config.freq_dim,
        "text_dim": config.text_dim,
        "in_dim": config.in_channels,
        "out_dim": config.out_channels,
        "num_heads": config.heads,
        "num_layers": config.layers,
        "eps": config.eps,
    }


def vae_sizes(naming: str, shapes: _Shapes) -> dict[str, Any]:
    """Sizes of a codec from its tensors, as :func:`vae_config` takes them; empty if they are another's.

    Of a Wan2.2 codec the widths are read, and what its tensors do not show is as published.
    """
    nested = {row.path: row.foreign_names(naming)[0] for row in vae_rows(WAN22)}
    if nested["encoder", "down_0", "conv1", "kernel"] in shapes:
        return _wan22_sizes(nested, shapes)
    names = {row.path: row.foreign_names(naming)[0] for row in vae_rows(VAEConfig())}
    first, z_dim = shapes.get(names["encoder", "conv_in", "kernel"]), shapes.get(names["post_quant_conv", "kernel"])
    block = names["encoder", "down_0", "conv1", "kernel"]
    if first is None or z_dim is None or block not in shapes:
        return {}
    before, after = block.split("0", 1)
    indices = [int(found[1]) for name in shapes if (found := re.match(re.escape(before) + r"(\d+)\.", name))]
    per_stage, rest = divmod(max(indices) + 2, 4)  # residual blocks and a halving, four times, but for the last halving
    widths = [shapes.get(f"{before}{stage * per_stage}{after}", first)[0] for stage in range(4)]
    if rest or per_stage < 2 or any(width % first[0] for width in widths):
        return {}
    halvings = [f"{before}{stage * per_stage + per_stage - 1}.time_conv.weight" in shapes for stage in range(3)]
    return {
        "base_dim": first[0],
        "z_dim": z_dim[0],
        "dim_mult": [width // first[0] for width in widths],
        "num_res_blocks": per_stage - 1,
        "temperal_downsample": halvings,
    }


def _wan22_sizes(names: Mapping[tuple[str, ...], str], shapes: _Shapes) -> dict[str, Any]:
    ends = {"base_dim": ("encoder", "conv_in", "bias"), "z_dim": ("post_quant_conv", "bias")}
    if any(names[path] not in shapes for path in (*ends.values(), ("decoder", "norm_out"))):
        return {}
    widths = {field: shapes[names[path]][0] for field, path in ends.items()}
    return vae_json(WAN22) | widths | {"decoder_base_dim": shapes[names["decoder", "norm_out"]][0]}


def vae_config(stored: _Json, source: pathlib.Path) -> tuple[VAEConfig, list[str]]:
    """Sizes of a codec from diffusers' ``config.json``; Wan2.1's where it states none. Returns as :func:`dit_config`.

    Raises:
        ValueError: a setting that we do not build.
    """
    _refuse_other(stored, _VAE_FIXED, source)
    values = {field: _tupled(stored[name]) for field, name in _VAE_FIELDS.items() if stored.get(name) is not None}
    config = VAEConfig(**values)
    follow = _vae_follow(config)
    _refuse_other(stored, {name: (value,) for name, value in follow.items()}, source)
    return config, _unused(stored, {*_VAE_FIELDS.values(), *follow}, _VAE_FIXED, _VAE_INERT)


def vae_json(config: VAEConfig) -> dict[str, Any]:
    """diffusers' ``config.json`` of a codec."""
    out: dict[str, Any] = {
        "_class_name": "AutoencoderKLWan",
        "attn_scales": [],
        "base_dim": config.base_dim,
        "dim_mult": list(config.dim_mult),
        "dropout": 0.0,
        "latents_mean": list(config.latents_mean),
        "latents_std": list(config.latents_std),
        "num_res_blocks": config.num_res_blocks,
        "temperal_downsample": list(config.temporal_downsample),
        "z_dim": config.z_dim,
    }
    # Wan2.1's codec is stored without what older readers of it do not know.
    if config.decoder_base_dim is not None:
        out["decoder_base_dim"] = config.decoder_base_dim
    if config.residual or config.patch > 1:
        out |= {
            "is_residual": config.residual,
            "patch_size": config.patch if config.patch > 1 else None,
            "scale_factor_temporal": config.strides[0],
            **_vae_follow(config),
        }
    return out


def _vae_follow(config: VAEConfig) -> dict[str, int]:
    """diffusers' settings that follow from others."""
    return {
        "in_channels": config.pixel_channels,
        "out_channels": config.pixel_channels,
        "scale_factor_spatial": config.strides[1],
    }


def umt5_sizes(naming: str, shapes: _Shapes) -> dict[str, Any]:
    """Sizes of a umT5 encoder from its tensors, as :func:`umt5_config` takes them; what they do not show is umT5's."""
    rows = {row.path: row for row in umt5_rows(UMT5Config(num_layers=1))}

    def shape(*path: str) -> tuple[int, ...]:
        return shapes.get(rows[path].foreign_names(naming)[0], ())

    table, bias = shape("token_embedding", "embedding"), shape("blocks", "attention", "relative_bias")
    query, gate = shape("blocks", "attention", "q", "kernel"), shape("blocks", "mlp", "gate", "kernel")
    if [len(found) for found in (table, bias, query, gate)] != [2] * 4 or query[0] % bias[1]:
        return {}
    return {
        "vocab_size": table[0],
        "d_model": table[1],
        "d_kv": query[0] // bias[1],
        "d_ff": gate[0],
        "num_heads": bias[1],
        "num_layers": _layers(getattr(rows["blocks", "attention", "q", "kernel"], naming), shapes),
        "relative_attention_num_buckets": bias[0],
    }


def umt5_config(stored: _Json, source: pathlib.Path) -> tuple[UMT5Config, list[str]]:
    """Sizes of a umT5 encoder from transformers' ``config.json``. Returns as :func:`dit_config`.

    Raises:
        ValueError: a setting that we do not build, or a size that is not stated.
    """
    _refuse_other(stored, _UMT5_FIXED, source)
    required = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers")
    if missing := [name for name in required if stored.get(name) is None]:
        raise ValueError(f"{source}: neither a config.json nor the tensors tell {', '.join(missing)}")
    values = {name: stored[name] for name in _UMT5_FIELDS if stored.get(name) is not None}
    return UMT5Config(**values), _unused(stored, set(_UMT5_FIELDS), _UMT5_FIXED, _UMT5_INERT)


def umt5_json(config: UMT5Config) -> dict[str, Any]:
    """transformers' ``config.json`` of a umT5 encoder."""
    return {
        "architectures": ["UMT5EncoderModel"],
        "model_type": "umt5",
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu_new",
        "is_gated_act": True,
        "is_encoder_decoder": True,
        "dropout_rate": 0.0,
        **{name: getattr(config, name) for name in _UMT5_FIELDS},
    }


def _layers(name: str, shapes: _Shapes) -> int:
    """Number of layers that have a tensor of this name, ``{i}`` standing for the layer's index."""
    pattern = re.escape(name).replace(r"\{i\}", r"(\d+)")
    return 1 + max((int(found[1]) for stored in shapes if (found := re.fullmatch(pattern, stored))), default=0)


def _refuse_other(stored: _Json, fixed: Mapping[str, tuple[Any, ...]], source: pathlib.Path) -> None:
    """Raises where a setting has a value that would make another network."""
    for name, allowed in fixed.items():
        if name in stored and stored[name] not in allowed:
            raise ValueError(
                f"{source}: config.json has {name} = {stored[name]!r}; only "
                f"{' or '.join(repr(value) for value in allowed)} is built"
            )


def _unused(stored: _Json, fields: set[str], fixed: Mapping[str, Any], inert: tuple[str, ...]) -> list[str]:
    """Settings that are neither used, nor fixed, nor known to be without effect."""
    return sorted(
        name for name in stored if name not in fields | set(fixed) | set(inert) and not name.startswith("_")
    )


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
