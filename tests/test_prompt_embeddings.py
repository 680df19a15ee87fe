"""Prompts to embeddings through the cache: what is computed once is not computed again."""

import dataclasses
import gc
import logging
import multiprocessing
import pathlib
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import torch_writing
from tests.test_hub import random_params
from wanjax import hub, partition, text
from wanjax.models import rows
from wanjax.models.rows.umt5 import umt5_rows
from wanjax.models.umt5 import UMT5Config, UMT5Encoder
from wanjax.prompt_embeddings import PromptEmbedder, default_cache

MODEL = UMT5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=48, num_heads=4, num_layers=2)
CONFIG = text.TextConfig(length=100, model=MODEL)
PROMPTS = ("A room brightens, the light slides left.", "日落,房间变暗,光斑向右移。", "", "sun")
COMPLAINT = "computed again"


class Counted:
    """An embedder of the seeded encoder that counts how often it is opened and what it embeds."""

    def __init__(self, cache, config=CONFIG, **changes):
        self.opened, self.embedded, self.alive = 0, [], None
        whole = PromptEmbedder.of_config(config, cache=cache)
        self.embedder = dataclasses.replace(whole, load=self._load, **changes)
        self._config = config

    def _load(self):
        self.opened += 1
        encoder = text.load_text_encoder_for(self._config)
        on_device = dataclasses.replace(encoder, params=jax.tree.map(jnp.array, encoder.params))
        self.alive = weakref.ref(jax.tree.leaves(on_device.params)[0])
        return _Noting(self.embedded, **vars(on_device))

    def __call__(self, *prompts):
        return self.embedder.embed(prompts)


@dataclasses.dataclass(frozen=True, eq=False)
class _Noting(text.TextEncoder):
    def __init__(self, noted, **fields):
        object.__setattr__(self, "noted", noted)
        super().__init__(**fields)

    def embed(self, texts):
        self.noted.append(list(texts))
        return super().embed(texts)


@pytest.fixture(scope="module")
def encoder():
    return text.load_text_encoder_for(CONFIG)


@pytest.fixture
def folder(tmp_path):
    """A released pipeline's text encoder, in the diffusers layout."""
    hub.save_text_encoder(tmp_path / "text_encoder", UMT5Encoder(MODEL), random_params(umt5_rows(MODEL)))
    return tmp_path / "text_encoder"


def equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)


def stored(cache):
    return sorted(file.name for file in cache.iterdir())


def test_embeddings_are_the_encoders_own_and_the_second_time_it_stays_closed(tmp_path, encoder):
    first, second = Counted(tmp_path / "cache"), Counted(tmp_path / "cache")
    embedded = first(*PROMPTS)
    equal(embedded, [encoder.embed([prompt])[0] for prompt in PROMPTS])
    equal(second(*PROMPTS), embedded)
    assert (first.opened, second.opened) == (1, 0)
    assert len(stored(tmp_path / "cache")) == len(PROMPTS)
    assert second() == []


def test_only_what_is_missing_is_embedded_each_prompt_once_and_alone(tmp_path):
    embedder = Counted(tmp_path)
    embedder("sun", "room")
    same = embedder("sun", " moon", "moon ", "room", "moon", "&lt;")
    assert embedder.embedded == [["sun"], ["room"], [" moon"], ["&lt;"]]
    equal(same[1:3], [same[4]] * 2)
    assert embedder("a", "<") and embedder.embedded[4:] == [["a"]]  # the cleaned text counts


def test_without_a_cache_everything_is_embedded(encoder):
    embedder = Counted(None)
    equal(embedder("sun", "sun"), encoder.embed(["sun"]) * 2)
    embedder("sun")
    assert embedder.opened == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prompt_is_embedded_as_if_alone_and_whatever_the_longest_may_be(tmp_path, dtype):
    model = dataclasses.replace(MODEL, dtype=dtype, d_model=256, d_kv=32, num_heads=8)
    config = dataclasses.replace(CONFIG, model=model)
    prompts = [f"light slides {i}" * (1 + i) for i in range(6)]
    together = PromptEmbedder.of_config(config, cache=tmp_path / "a").embed(prompts)
    equal(PromptEmbedder.of_config(config, cache=tmp_path / "a").embed(prompts[::-1]), together[::-1])
    longer = PromptEmbedder.of_config(dataclasses.replace(config, length=512), cache=tmp_path / "b")
    equal([longer.embed([prompt])[0] for prompt in prompts], together)
    assert stored(tmp_path / "a") == stored(tmp_path / "b")


def test_the_encoder_is_freed_before_embed_returns(tmp_path):
    embedder = Counted(tmp_path)
    before = {id(array) for array in jax.live_arrays()}
    gc.disable()  # not only when the collector comes by
    try:
        kept = embedder("sun")
        assert embedder.alive() is None
        assert not [array.shape for array in jax.live_arrays() if id(array) not in before]
    finally:
        gc.enable()
    assert kept[0].base is None  # nor does an embedding hold on to what it was computed in


def test_an_open_encoder_stays_open(encoder):
    embedder = PromptEmbedder.of(encoder)
    assert (embedder.length, embedder.width, embedder.cache) == (100, 32, None)
    equal(embedder.embed(["sun"]), encoder.embed(["sun"]))
    equal(embedder.embed(["sun"]), encoder.embed(["sun"]))
    assert embedder.fingerprint == encoder.fingerprint == PromptEmbedder.of_config(CONFIG).fingerprint


def test_prompts_are_checked_before_the_encoder_is_opened(tmp_path):
    embedder = Counted(tmp_path)
    with pytest.raises(text.CaptionTooLong, match="has 101 tokens, the limit is 100, the last 1 too many"):
        embedder("sun", "x" * 100)
    other = Counted(tmp_path, vocab_size=100)
    with pytest.raises(ValueError, match="gives token 120, but the text encoder knows 100"):
        other("sun")
    assert (embedder.opened, other.opened, stored(tmp_path)) == (0, 0, [])


def test_an_encoder_of_other_sizes_is_not_cached(tmp_path):
    embedder = Counted(tmp_path, width=48)
    with pytest.raises(ValueError, match="has width 32 and 384 tokens, expected 48 and 384"):
        embedder("sun")
    assert stored(tmp_path) == []


@pytest.mark.parametrize("damage", ["cut short", "flipped", "empty", "header", "other shape", "other type", "no sum"])
def test_a_damaged_file_is_computed_again_with_a_warning(tmp_path, caplog, damage):
    embedder = Counted(tmp_path)
    (right,) = embedder("light")
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-7] ^= 4
    if damage in ("cut short", "flipped", "empty", "header"):
        file.write_bytes({"cut short": whole[:-9], "flipped": flipped, "empty": b"", "header": b"\xff" * 99}[damage])
    else:
        array = {"other shape": right[:-1], "other type": right.astype(np.float16), "no sum": right}[damage]
        save_file({"embedding": array}, file)
    with caplog.at_level(logging.WARNING):
        equal(embedder("light"), [right])
    assert embedder.opened == 2 and COMPLAINT in caplog.text and str(file) in caplog.text
    assert file.read_bytes() == whole
    caplog.clear()
    equal(embedder("light"), [right])
    assert embedder.opened == 2 and not caplog.records


def test_a_folder_that_cannot_be_written_costs_the_cache_and_not_the_embedding(tmp_path, encoder, caplog):
    (tmp_path / "file").write_text("in the way")
    embedder = Counted(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING):
        equal(embedder("sun"), encoder.embed(["sun"]))
    assert "are not kept in" in caplog.text and "XDG_CACHE_HOME" in caplog.text


def test_a_write_that_fails_leaves_nothing(tmp_path, encoder, caplog, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with caplog.at_level(logging.WARNING):
        equal(Counted(tmp_path)("sun"), encoder.embed(["sun"]))
    assert "No space left" in caplog.text and stored(tmp_path) == []


def test_an_interruption_keeps_what_was_finished(tmp_path, monkeypatch):
    embedder = Counted(tmp_path)
    embed = _Noting.embed

    def interrupted(self, texts):
        if texts == ["room"]:
            raise KeyboardInterrupt
        return embed(self, texts)

    monkeypatch.setattr(_Noting, "embed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedder("sun", "room")
    monkeypatch.undo()
    embedder("sun", "room")
    assert embedder.embedded == [["sun"], ["room"]]


def write_often(cache, out):
    embedder = Counted(pathlib.Path(cache))
    for i in range(20):
        if i % 3 == 0:
            for file in pathlib.Path(cache).glob("*.safetensors"):
                file.unlink(missing_ok=True)
        (found,) = embedder("sun")
    out.put((found, embedder.opened))


def test_processes_may_write_the_same_prompt_at_once(tmp_path, encoder):
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    workers = [context.Process(target=write_often, args=(str(tmp_path), out)) for _ in range(2)]
    for worker in workers:
        worker.start()
    results = [out.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    for found, opened in results:
        equal([found], encoder.embed(["sun"]))
        assert opened >= 1
    assert len(stored(tmp_path)) == 1


def test_the_fingerprint_of_a_folder_follows_its_content_and_not_its_place(tmp_path, folder):
    config = dataclasses.replace(CONFIG, encoder=str(folder))
    before = PromptEmbedder.of_config(config).fingerprint
    moved = tmp_path / "moved"
    folder.rename(moved)
    there = dataclasses.replace(config, encoder=str(moved))
    assert PromptEmbedder.of_config(there).fingerprint == before
    others = [dataclasses.replace(there, model=dataclasses.replace(MODEL, dtype="bfloat16")), CONFIG]
    fingerprints = {before, *(PromptEmbedder.of_config(other).fingerprint for other in others)}
    config_json = moved / "config.json"
    config_json.write_text(config_json.read_text().replace("1e-06", "1e-05"))
    fingerprints.add(PromptEmbedder.of_config(there).fingerprint)
    (weights,) = moved.glob("*.safetensors")
    tensors = load_file(weights)
    tensors["encoder.final_layer_norm.weight"][3] += 1
    save_file(tensors, weights, {"format": "pt"})
    fingerprints.add(PromptEmbedder.of_config(there).fingerprint)
    fingerprints.add(dataclasses.replace(PromptEmbedder.of_config(there), tokenizer=_Shifted()).fingerprint)
    assert len(fingerprints) == 5


class _Shifted:
    name = "shifted"

    def __call__(self, one):
        return [byte + 4 for byte in one.encode()] + [1]


def test_another_tokenizer_is_another_embedding(tmp_path):
    embedder = Counted(tmp_path)
    (plain,) = embedder("sun")
    shifted = Counted(tmp_path, tokenizer=_Shifted())
    shifted("sun")
    assert shifted.opened == 1 and len(stored(tmp_path)) == 2


@pytest.mark.parametrize("naming", ["diffusers", "official", "orbax"])
def test_a_released_encoder_is_described_without_its_weights_being_read(tmp_path, folder, naming, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "</s>": 1, "sun": 2, "room": 3}, "<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    (tmp_path / "tokenizer").mkdir()
    words.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    (tmp_path / "tokenizer/tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    part = folder
    if naming == "official":
        part = tmp_path / "models_t5_umt5-xxl-enc-bf16.pth"
        params = random_params(umt5_rows(MODEL))
        torch_writing.save(rows.export_tensors(umt5_rows(MODEL), params, "official"), part)
        (tmp_path / "config.json").write_text('{"_class_name": "WanModel"}')  # the transformer's
    elif naming == "orbax":
        part = tmp_path / "ours"
        hub.save_text_encoder(part, UMT5Encoder(MODEL), random_params(umt5_rows(MODEL)), layout="orbax")
    with monkeypatch.context() as patch:
        patch.setattr("wanjax.weight_files.TensorReader.__getitem__", None)
        embedder = PromptEmbedder.of_release(part, tmp_path / "tokenizer", length=8, cache=tmp_path / "cache")
    assert (embedder.vocab_size, embedder.width, embedder.length) == (384, 32, 8)
    expected = text.TextEncoder(embedder.tokenizer, *hub.load_text_encoder(part), 8)
    equal(embedder.embed(["sun room"]), expected.embed(["sun room"]))
    (tmp_path / "config.json").write_text("{}")
    assert PromptEmbedder.of_release(part, tmp_path / "tokenizer", length=8).fingerprint == embedder.fingerprint
    half = PromptEmbedder.of_release(part, tmp_path / "tokenizer", length=8, dtype="bfloat16")
    assert half.fingerprint != embedder.fingerprint and half.load().encoder.config.dtype == "bfloat16"


def test_what_is_no_encoder_is_named(tmp_path, folder):
    wrong = dataclasses.replace(CONFIG, encoder=str(folder), model=dataclasses.replace(MODEL, d_model=40))
    with pytest.raises(ValueError, match="has 384 tokens of width 32, config.text.model has vocab_size 384 and d_mod"):
        PromptEmbedder.of_config(wrong)
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors is not a umT5 encoder: expected tensors such as"):
        PromptEmbedder.of_config(dataclasses.replace(CONFIG, encoder=str(tmp_path / "other.safetensors")))
    with pytest.raises(ValueError, match="is the root of a pipeline"):
        PromptEmbedder.of_config(dataclasses.replace(CONFIG, encoder=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="absent' does not exist"):
        PromptEmbedder.of_config(dataclasses.replace(CONFIG, encoder=str(tmp_path / "absent")))


def test_the_default_cache_follows_the_users_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, expected in ((str(tmp_path / "x"), "x"), ("", ".cache"), ("relative", ".cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_cache() == tmp_path / expected / "wanjax" / "prompts"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == tmp_path / ".cache" / "wanjax" / "prompts"


def test_an_encoder_spread_over_devices_gives_the_same_bits(folder):
    """So that the cache need not know which machine embedded a prompt."""
    mesh = partition.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    config = dataclasses.replace(CONFIG, encoder=str(folder))
    prompts = ["The light slides left.", "日落"]
    one, many = (PromptEmbedder.of_config(config, mesh=over) for over in (None, mesh))
    assert one.fingerprint == many.fingerprint
    equal(many.embed(prompts), one.embed(prompts))
    params = many.load().params
    for leaf in (params["token_embedding"]["embedding"], params["blocks"]["mlp"]["down"]["kernel"]):
        assert leaf.addressable_shards[0].data.size == leaf.size // 8
