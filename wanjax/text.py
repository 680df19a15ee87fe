"""Captions to embeddings: cleaning, tokenizing, the frozen text encoder, padding."""

from __future__ import annotations

import functools
import hashlib
import html
import json
import os
import pathlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import ftfy
import jax
import numpy as np

from wanjax import hub, partition
from wanjax.models.umt5 import UMT5Config, UMT5Encoder

BYT5 = "byt5"
SEEDED = "seeded"

# Part of the fingerprint of a seeded encoder: raise it when the same seed gives other parameters than before.
_SEEDED_VERSION = 1
# Texts per call of the encoder and the shortest padded length: few shapes, hence few compilations.
_BATCH = 8
_SHORTEST = 64


@dataclass(frozen=True)
class TextConfig:
    """What turns captions into embeddings.

    Attributes:
        tokenizer: "byt5" (UTF-8 bytes, needs no file) or a folder that transformers' ``AutoTokenizer`` opens
            (``google/umt5-xxl`` of the official layout, ``tokenizer`` of the diffusers layout).
        encoder: "seeded" (random parameters from ``seed``, never trained) or a ``text_encoder`` folder in the
            diffusers layout.
        length: most tokens per caption, end mark included, and the L that captions are padded to for the transformer.
        seed: of the seeded encoder.
        model: sizes of the encoder. A folder must hold an encoder of these sizes; it is run in ``model.dtype``.
    """

    tokenizer: str = BYT5
    encoder: str = SEEDED
    length: int = 512
    seed: int = 0
    model: UMT5Config = field(default_factory=UMT5Config)


class Tokenizer(Protocol):
    """Text to token numbers, end mark included, without padding."""

    @property
    def name(self) -> str:
        """Identifies the vocabulary; part of the text encoder's fingerprint."""

    def __call__(self, text: str) -> list[int]: ...


class CaptionTooLong(ValueError):
    """A caption has more tokens than the text length allows."""


@dataclass(frozen=True)
class _TransformersTokenizer:
    name: str
    tokenizer: Any

    def __call__(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=True).input_ids)


def clean(text: str) -> str:
    """Caption as Wan's reference cleans it: mojibake repaired, HTML entities undone twice, whitespace collapsed."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


def checked_tokens(text: str, tokenizer: Tokenizer, length: int, vocab_size: int) -> list[int]:
    """Token numbers of one caption after cleaning, end mark included.

    Args:
        length: most tokens, end mark included.
        vocab_size: tokens that the encoder knows.

    Raises:
        CaptionTooLong: more than ``length`` tokens. Cutting a caption would silently change its meaning.
        ValueError: the tokenizer and the encoder do not belong together.
    """
    ids = tokenizer(clean(text))
    if len(ids) > length:
        raise CaptionTooLong(
            f"caption {text!r} has {len(ids)} tokens, the limit is {length}, the last {len(ids) - length} too many: "
            "shorten it, or train with a larger config.text.length"
        )
    if max(ids) >= vocab_size:
        raise ValueError(
            f"caption {text!r} gives token {max(ids)}, but the text encoder knows {vocab_size}: tokenizer "
            f"{tokenizer.name} belongs to another encoder"
        )
    return ids


def load_tokenizer(name: str) -> Tokenizer:
    """Opens "byt5" or a tokenizer's folder.

    Raises:
        FileNotFoundError: the folder does not exist or holds no tokenizer.
    """
    # transformers takes over a second to import and advises at import that PyTorch is absent, which we do not need.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer, ByT5Tokenizer

    if name == BYT5:
        return _TransformersTokenizer(BYT5, ByT5Tokenizer())
    folder = pathlib.Path(name)
    vocabularies = [folder / file for file in ("tokenizer.json", "spiece.model") if (folder / file).is_file()]
    byte_level = (folder / "tokenizer_config.json").is_file() and "ByT5" in (
        folder / "tokenizer_config.json"
    ).read_text(encoding="utf-8")
    if not vocabularies and not byte_level:
        raise FileNotFoundError(
            f"tokenizer {name!r}: expected {BYT5!r} or a folder with tokenizer.json or spiece.model (google/umt5-xxl "
            "of the official layout, tokenizer of the diffusers layout)"
        )
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in vocabularies)).hexdigest()
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return _TransformersTokenizer(f"{type(tokenizer).__name__}:{digest}", tokenizer)


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A tokenizer, a frozen umT5 encoder and the longest caption they accept.

    Attributes:
        tokenizer: see :class:`Tokenizer`.
        encoder, params: the network and its parameters.
        length: most tokens per caption, end mark included.
        params_id: names the parameters in the fingerprint; None hashes them.
    """

    tokenizer: Tokenizer
    encoder: UMT5Encoder
    params: Any
    length: int
    params_id: str | None = None

    @property
    def width(self) -> int:
        """E, the width of the embeddings."""
        return self.encoder.config.d_model

    def tokens(self, text: str) -> list[int]:
        """Token numbers of one caption after cleaning, end mark included.

        Raises:
            CaptionTooLong: more than ``length`` tokens. Cutting a caption would silently change its meaning.
            ValueError: the tokenizer and the encoder do not belong together.
        """
        return checked_tokens(text, self.tokenizer, self.length, self.encoder.config.vocab_size)

    def embed(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Embeddings ``[n_i, E]`` float32 of each caption's own ``n_i`` tokens, without padding, in the given order.

        Raises:
            CaptionTooLong: a caption has more tokens than ``length``.
        """
        ids = [self.tokens(text) for text in texts]
        encode = _compiled_apply(self.encoder)
        by_length: dict[int, list[int]] = {}
        for i, one in enumerate(ids):
            by_length.setdefault(_padded_length(len(one)), []).append(i)
        out: dict[int, np.ndarray] = {}
        for length, members in by_length.items():
            size = _BATCH if len(members) > 1 else 1
            for start in range(0, len(members), size):
                group = members[start : start + size]
                batch = np.zeros((size, length), np.int32)
                mask = np.zeros((size, length), bool)
                mask[:, 0] = True  # rows that only fill the batch still need a token to attend to
                for row, i in enumerate(group):
                    batch[row, : len(ids[i])] = ids[i]
                    mask[row, : len(ids[i])] = True
                features = np.asarray(encode({"params": self.params}, batch, mask), np.float32)
                out.update({i: features[row, : len(ids[i])] for row, i in enumerate(group)})
        return [out[i] for i in range(len(ids))]

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that determines an embedding: tokenizer, sizes of the encoder, parameters."""
        digest = _digest_of(self.tokenizer, self.encoder.config)
        if self.params_id is not None:
            digest.update(self.params_id.encode())
            return digest.hexdigest()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            array = np.ascontiguousarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
            digest.update(array.view(np.uint8).data)
        return digest.hexdigest()


def _padded_length(tokens: int) -> int:
    """The next power of two, at least ``_SHORTEST``. Of the caption alone: the last bits of a sum follow its length."""
    return max(_SHORTEST, 1 << (tokens - 1).bit_length())


def _digest_of(tokenizer: Tokenizer, config: UMT5Config) -> Any:
    """A sha256 that has seen all of an encoder but its parameters."""
    description = {"tokenizer": tokenizer.name, "config": asdict(config)}
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode())


@functools.lru_cache(maxsize=8)
def _compiled_apply(encoder: UMT5Encoder) -> Any:
    return jax.jit(encoder.apply)


@functools.lru_cache(maxsize=8)
def _compiled_init(encoder: UMT5Encoder) -> Any:
    return jax.jit(encoder.init)


def pad(embeddings: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Zero-padded float32 ``[B, L, E]`` with L = ``length`` from embeddings ``[n_i, E]``.

    Wan pads with zeros before the transformer's text MLP and never masks them in its attention.

    Raises:
        ValueError: no embedding, one that is longer than ``length``, or different widths.
    """
    if not embeddings:
        raise ValueError("no embeddings to pad")
    widths = {one.shape[-1] for one in embeddings}
    if len(widths) > 1:
        raise ValueError(f"embeddings of different widths {sorted(widths)} cannot form one batch")
    out = np.zeros((len(embeddings), length, widths.pop()), np.float32)
    for row, one in enumerate(embeddings):
        if len(one) > length:
            raise ValueError(f"embedding {row} has {len(one)} tokens, the text length is {length}")
        out[row, : len(one)] = one
    return out


def seeded_fingerprint(config: TextConfig, tokenizer: Tokenizer) -> str:
    """``fingerprint`` of the seeded encoder that a config describes, without making its parameters."""
    digest = _digest_of(tokenizer, config.model)
    digest.update(_seeded_id(config).encode())
    return digest.hexdigest()


def _seeded_id(config: TextConfig) -> str:
    return f"seeded by {config.seed}, version {_SEEDED_VERSION}"


def over_devices(mesh: jax.sharding.Mesh | None) -> jax.sharding.Mesh | None:
    """The mesh that a text encoder is spread over: this process's devices of a network's mesh, along one axis.

    Each process embeds what it needs, when it needs it, and so waits for no other.
    """
    return None if mesh is None else partition.make_mesh({"fsdp": -1}, list(mesh.local_devices))


def load_text_encoder_for(
    config: TextConfig, tokenizer: Tokenizer | None = None, *, mesh: jax.sharding.Mesh | None = None
) -> TextEncoder:
    """The text encoder that a config describes.

    Args:
        tokenizer: that of the config, where it is open already.
        mesh: devices to spread the parameters of a folder over, see :func:`over_devices`; None is one device. A seeded
            encoder is small and stays whole.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: the folder's encoder does not have the sizes of ``config.model``.
    """
    tokenizer = tokenizer or load_tokenizer(config.tokenizer)
    if config.encoder == SEEDED:
        encoder = UMT5Encoder(config.model)
        with jax.default_device(jax.local_devices(backend="cpu")[0]):  # the same parameters on every accelerator
            params = _compiled_init(encoder)(jax.random.key(config.seed))["params"]
        params = jax.tree.map(np.asarray, params)
        return TextEncoder(tokenizer, encoder, params, config.length, _seeded_id(config))
    encoder, params = hub.load_text_encoder(config.encoder, dtype=config.model.dtype, mesh=over_devices(mesh))
    found, wanted = asdict(encoder.config), asdict(config.model)
    different = [
        f"{name} {found[name]!r}, config {wanted[name]!r}"
        for name in found
        if name != "param_dtype" and found[name] != wanted[name]
    ]
    if different:
        raise ValueError(
            f"text encoder {config.encoder} does not have the sizes of config.text.model: {'; '.join(different)}"
        )
    return TextEncoder(tokenizer, encoder, params, config.length)
