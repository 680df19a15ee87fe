"""Prompts to embeddings through a cache on disk: the text encoder is opened for what is missing, and freed again.

umT5-XXL takes 11 GB and is needed for a moment before the experts are; a prompt that has been embedded once needs it no
more. Each embedding lies in a file of its own, named by the sha256 of the encoder, the cleaned text and its tokens.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
import safetensors
import safetensors.numpy

from wanjax import hub, text
from wanjax.models.umt5 import UMT5Config

# Part of every key: raise it when the same encoder gives other embeddings of the same tokens than before.
_VERSION = 1
_TENSOR, _CHECK = "embedding", "sha256"

_log = logging.getLogger(__name__)
_PathLike = str | os.PathLike[str]


def default_cache() -> pathlib.Path:
    """``wanjax/prompts`` in ``$XDG_CACHE_HOME``, or in ``~/.cache`` where that is unset or no absolute path.

    Source: XDG Base Directory Specification.
    """
    stated = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (stated if stated.is_absolute() else pathlib.Path.home() / ".cache") / "wanjax" / "prompts"


@dataclass(frozen=True, eq=False)
class PromptEmbedder:
    """A tokenizer, and a text encoder that is opened only for prompts whose embedding is not in the cache.

    Attributes:
        tokenizer: see :class:`wanjax.text.Tokenizer`.
        length: most tokens per prompt, end mark included, and the L that the transformer's text is padded to.
        width: E.
        vocab_size: tokens that the encoder knows.
        fingerprint: of all that determines an embedding: weights, config, compute type, tokenizer.
        load: opens the encoder; see :meth:`open`. ``embed`` lets go of it before it returns, which frees it and its
            device memory unless ``load`` keeps it.
        cache: folder of the embeddings, made when the first is written; None keeps none.
    """

    tokenizer: text.Tokenizer
    length: int
    width: int
    vocab_size: int
    fingerprint: str
    load: Callable[[], text.TextEncoder]
    cache: pathlib.Path | None = None

    @classmethod
    def of(cls, encoder: text.TextEncoder) -> PromptEmbedder:
        """Of an encoder that is open and stays so, without a cache.

        The fingerprint is the encoder's own: without a ``params_id`` all parameters are hashed here.
        """
        return cls(encoder.tokenizer, encoder.length, encoder.width, encoder.encoder.config.vocab_size,
                   encoder.fingerprint, lambda: encoder)  # fmt: skip

    @classmethod
    def of_config(
        cls, config: text.TextConfig, *, cache: pathlib.Path | None = None, mesh: jax.sharding.Mesh | None = None
    ) -> PromptEmbedder:
        """Of the encoder that a config describes; opens the tokenizer alone.

        Args:
            cache: as the attribute.
            mesh: see :func:`wanjax.text.over_devices`.

        Raises:
            FileNotFoundError: a folder is missing.
            ValueError: the folder's encoder is not one, is damaged, or has another vocabulary or width than
                ``config.model``. Its other sizes are compared when it is opened.
        """
        tokenizer = text.load_tokenizer(config.tokenizer)
        model = config.model
        if config.encoder == text.SEEDED:
            fingerprint = text.seeded_fingerprint(config, tokenizer)
        else:
            found, digest = _described(config.encoder)
            if found != (model.vocab_size, model.d_model):
                raise ValueError(
                    f"text encoder {config.encoder} has {found[0]} tokens of width {found[1]}, config.text.model has "
                    f"vocab_size {model.vocab_size} and d_model {model.d_model}"
                )
            fingerprint = _fingerprint(tokenizer, digest, model.dtype)
        load = functools.partial(text.load_text_encoder_for, config, tokenizer, mesh=mesh)
        return cls(tokenizer, config.length, model.d_model, model.vocab_size, fingerprint, load, cache)

    @classmethod
    def of_release(
        cls,
        encoder: _PathLike,
        tokenizer: _PathLike,
        *,
        length: int,
        dtype: str | None = None,
        cache: pathlib.Path | None = None,
        mesh: jax.sharding.Mesh | None = None,
    ) -> PromptEmbedder:
        """Of the parts of a released pipeline; opens the tokenizer, and the headers of the encoder's weights.

        Args:
            encoder: as :func:`wanjax.hub.load_text_encoder` takes it.
            tokenizer: the folder beside it.
            length: most tokens per prompt.
            dtype: to run the encoder in; None is the stored one.
            cache: as the attribute.
            mesh: see :func:`wanjax.text.over_devices`.

        Raises:
            FileNotFoundError: one of the two is not there.
            ValueError: ``encoder`` is no umT5 encoder, or is damaged.
        """
        opened = text.load_tokenizer(os.fspath(tokenizer))
        (vocab_size, width), digest = _described(encoder)

        def load() -> text.TextEncoder:
            over = text.over_devices(mesh)
            return text.TextEncoder(opened, *hub.load_text_encoder(encoder, dtype=dtype, mesh=over), length)

        return cls(opened, length, width, vocab_size, _fingerprint(opened, digest, dtype), load, cache)

    def open(self) -> text.TextEncoder:
        """The text encoder itself, for many captions at a time, of which no cache knows.

        Raises:
            ValueError: ``load`` gave an encoder of another width or vocabulary.
        """
        encoder = self.load()
        if (encoder.width, encoder.encoder.config.vocab_size) != (self.width, self.vocab_size):
            raise ValueError(
                f"the text encoder that was opened has width {encoder.width} and "
                f"{encoder.encoder.config.vocab_size} tokens, expected {self.width} and {self.vocab_size}"
            )
        return encoder

    def embed(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Embeddings ``[n_i, E]`` float32 of each prompt's own ``n_i`` tokens, without padding, in the given order.

        Each prompt goes through the encoder alone: in bfloat16 its embedding differs by 1 % of the largest value
        between a call for one prompt and a call for eight (XLA on CPU), and a cache must not remember its company.

        Raises:
            CaptionTooLong: a prompt has more tokens than ``length``. All are checked before the encoder is opened.
            ValueError: the tokenizer or ``load`` belongs to another encoder.
        """
        tokens = {one: text.checked_tokens(one, self.tokenizer, self.length, self.vocab_size) for one in texts}
        keys = {one: self._key(one, ids) for one, ids in tokens.items()}
        found = {}
        for one, ids in tokens.items():
            if keys[one] not in found and (kept := self._read(keys[one], len(ids))) is not None:
                found[keys[one]] = kept
        missing: dict[str, str] = {}
        for one, key in keys.items():
            if key not in found:
                missing.setdefault(key, one)  # several texts may be one when cleaned
        if missing:
            found |= self._compute(missing)
        return [found[keys[one]] for one in texts]

    def _compute(self, texts: dict[str, str]) -> dict[str, np.ndarray]:
        """Embeddings by key; each is kept as soon as it is there. The encoder lives no longer than this call."""
        encoder, out = self.open(), {}
        for key, one in texts.items():
            out[key] = np.array(encoder.embed([one])[0], np.float32)  # a copy: it may view what the encoder gave
            self._keep(key, out[key])
        return out

    def _key(self, one: str, ids: list[int]) -> str:
        content = json.dumps([_VERSION, self.fingerprint, text.clean(one), ids])
        return hashlib.sha256(content.encode()).hexdigest()

    def _read(self, key: str, tokens: int) -> np.ndarray | None:
        """What the cache has, or None; a file that is damaged counts as none, with a warning."""
        if self.cache is None:
            return None
        file = self.cache / f"{key}.safetensors"
        try:
            with safetensors.safe_open(file, "np") as opened:
                metadata, array = opened.metadata() or {}, opened.get_tensor(_TENSOR)
        except FileNotFoundError:
            return None
        except (OSError, safetensors.SafetensorError) as error:
            _log.warning("cached embedding %s cannot be read (%s): it is computed again", file, error)
            return None
        if array.shape != (tokens, self.width) or array.dtype != np.float32 or metadata.get(_CHECK) != _sum(array):
            _log.warning("cached embedding %s is damaged: it is computed again", file)
            return None
        return array

    def _keep(self, key: str, embedding: np.ndarray) -> None:
        """Puts one embedding into the cache whole or not at all; where that fails, says so and goes on without."""
        if self.cache is None:
            return
        content = safetensors.numpy.save({_TENSOR: embedding}, {_CHECK: _sum(embedding)})
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            # a name of its own: processes that want the same prompt write at the same time
            handle, name = tempfile.mkstemp(dir=self.cache, prefix=f".{key}.")
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(content)
                os.replace(name, self.cache / f"{key}.safetensors")
            finally:
                pathlib.Path(name).unlink(missing_ok=True)
        except OSError as error:
            _log.warning(
                "prompt embeddings are not kept in %s (%s): free the disk, or set XDG_CACHE_HOME to a folder that can "
                "be written to", self.cache, error,
            )  # fmt: skip


def _described(path: _PathLike) -> tuple[tuple[int, int], str]:
    """(vocab_size, E) of a stored encoder, and a digest of its files, from headers and samples."""
    config = hub.open_network(path, "text_encoder").config
    assert isinstance(config, UMT5Config)
    return (config.vocab_size, config.d_model), hub.digest(path)


def _fingerprint(tokenizer: text.Tokenizer, digest: str, dtype: str | None) -> str:
    description = {"tokenizer": tokenizer.name, "weights": digest, "dtype": dtype}
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _sum(embedding: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(embedding).data).hexdigest()
