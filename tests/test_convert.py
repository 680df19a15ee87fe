"""The converter: every layout into every other, bit for bit, or an error before anything is written."""

import dataclasses
import filecmp
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.parity import dit_case
from tests.test_hub import equal
from tests.test_hub_names import hub as hub_here  # noqa: F401  a fixture
from tests.test_sample import workdir  # noqa: F401  a fixture
from wanjax import checkpoint, convert, hub, hub_writing, manifest, partition, pipeline, warm_start
from wanjax.family import MEMBERS, WAN21_STRIDES
from wanjax.hub_layouts import INDEX, read_index
from wanjax.hub_networks import rows_of
from wanjax.models import rows
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.umt5 import UMT5Config, UMT5Encoder
from wanjax.models.vae import WAN22, VAEConfig, WanVAE

ROOT = pathlib.Path(__file__).parents[1]
MODEL = DiTConfig(width=16, heads=2, layers=2, ffn=32, in_channels=4, out_channels=4, freq_dim=16, text_dim=8)
CODEC21 = VAEConfig(base_dim=4, num_res_blocks=1, dim_mult=(1, 3, 2, 4), temporal_downsample=(True, False, True))
CODEC22 = dataclasses.replace(WAN22, base_dim=8, decoder_base_dim=16)
TEXT = UMT5Config(vocab_size=384, d_model=16, d_kv=6, d_ff=40, num_heads=5, num_layers=3)
SHARD = 40_000  # bytes: several of a tiny transformer


def random_params(config, dtype_of, seed):
    """Random in every parameter; ``dtype_of(row)`` names the type in which each is stored."""
    rng = np.random.default_rng(seed)
    return rows.tree(rows_of(config), lambda row: jnp.asarray(
        rng.standard_normal(row.full_shape) * 0.05, jnp.float32).astype(dtype_of(row)))  # fmt: skip


def as_published(row):
    """Matrices in bfloat16; what diffusers keeps in float32 in float32."""
    return "float32" if "norm" in row.path[-2] or row.path[0] == "time_embedding" or "modulation" in row.path \
        else "bfloat16"  # fmt: skip


def write_release(folder, member, *, tokenizer=True):
    """A pipeline in the diffusers layout: the member's channels and experts at tiny width, types mixed."""
    tiny = dataclasses.replace(member.model, width=48, heads=4, layers=3, ffn=56, freq_dim=32, text_dim=24)
    parts = ["transformer", "transformer_2"][: len(member.experts)]
    codec = CODEC21 if member.strides == WAN21_STRIDES else CODEC22
    networks = {part: (WanDiT(tiny), as_published) for part in parts}
    networks |= {"vae": (WanVAE(codec), lambda row: "float32"),
                 "text_encoder": (UMT5Encoder(TEXT), lambda row: "bfloat16")}  # fmt: skip
    for seed, (part, (model, dtype_of)) in enumerate(networks.items()):
        network = hub.network_of(model, random_params(model.config, dtype_of, seed))
        hub.save_network(folder / part, network, layout="diffusers", max_shard_bytes=SHARD)
    if tokenizer:
        from transformers import ByT5Tokenizer

        ByT5Tokenizer().save_pretrained(str(folder / "tokenizer"))
    index = {"_class_name": "WanPipeline", "boundary_ratio": member.sample.boundary or None,
             **{part: ["library", "Class"] for part in (*networks, *(["tokenizer"] if tokenizer else []))}}  # fmt: skip
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def same_files(found, expected, folders):
    """Every file of the folders is there with the same bytes, and no other."""
    for folder in folders:
        names = [{file.relative_to(root / folder).as_posix() for file in (root / folder).rglob("*") if file.is_file()}
                 for root in (found, expected)]  # fmt: skip
        assert names[0] == names[1], folder
        for name in names[0]:
            assert filecmp.cmp(found / folder / name, expected / folder / name, shallow=False), f"{folder}/{name}"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder, params = tmp_path_factory.mktemp("release"), {}
    for seed, (name, sub) in enumerate(warm_start.DIFFUSERS_FOLDERS.items()):
        params[name] = dit_case.params(MODEL, seed=seed)
        hub.save_dit(folder / sub, WanDiT(MODEL), params[name])
    return folder, params


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The pipeline of two experts."""
    return write_release(tmp_path_factory.mktemp("whole"), MEMBERS["Wan2.2-T2V-A14B"])


@pytest.fixture
def steps(monkeypatch):
    """Shards of converted weights are as small as those that were published."""
    monkeypatch.setattr(hub_writing, "SHARD_BYTES", SHARD)


@pytest.mark.parametrize("name", MEMBERS)
def test_the_round_trip_through_every_layout_gives_the_same_bytes(tmp_path, steps, name):
    first = write_release(tmp_path / "first", MEMBERS[name])
    where, seen = first, []
    for layout in ("orbax", "official", "comfyui", "diffusers"):
        convert.convert(where, tmp_path / layout, layout=layout)
        where = tmp_path / layout
        assert hub.layout_of(where) == layout
        assert not manifest.verify(where).problems
        seen.append(hub.open_layout(where)["boundary_ratio"])
    parts = [part for part in ("transformer", "transformer_2") if (first / part).is_dir()]
    assert len(list((first / "transformer").glob("*-of-*"))) > 3
    same_files(where, first, [*parts, "vae", "text_encoder", "tokenizer"])
    assert seen == [MEMBERS[name].sample.boundary or None] * 4
    index = read_index(where)
    image = MEMBERS[name].model.in_channels == 36
    assert index["_class_name"] == ("WanImageToVideoPipeline" if image else "WanPipeline")
    assert index["expand_timesteps"] == (name == "Wan2.2-TI2V-5B")
    assert index["tokenizer"] == ["transformers", "ByT5Tokenizer"]
    assert any(index["transformer_2"]) == (len(parts) == 2)
    scheduler = json.loads((where / "scheduler/scheduler_config.json").read_text())
    assert scheduler["flow_shift"] == MEMBERS[name].sample.shift


@pytest.mark.parametrize("layout", hub.LAYOUTS)
def test_a_single_network_goes_through_every_layout(tmp_path, whole, steps, layout):
    for part, kind in (("transformer_2", "transformer"), ("vae", "vae"), ("text_encoder", "text_encoder")):
        convert.convert(whole / part, tmp_path / "there" / part, layout=layout)
        assert hub.open_network(tmp_path / "there" / part).kind == kind
        convert.convert(tmp_path / "there" / part, tmp_path / "back" / part)
        (tmp_path / "back" / part / manifest.NAME).unlink()
    same_files(tmp_path / "back", whole, ["transformer_2", "vae", "text_encoder"])


def test_every_layout_opens_as_the_same_network(tmp_path, whole):
    mesh = partition.make_mesh({"fsdp": 4, "tensor": 2})
    expected = {dtype: hub.load_dit(whole / "transformer", dtype=dtype) for dtype in (None, "float32")}
    for layout in ("official", "comfyui", "orbax"):
        convert.convert(whole, tmp_path / layout, layout=layout)
        parts = hub.open_layout(tmp_path / layout)
        for dtype, (model, params) in expected.items():
            found, again = hub.load_dit(parts["transformer"], dtype=dtype)
            assert found == model
            equal(again, params)
        placed = hub.load_dit(parts["transformer"], mesh=mesh)[1]
        equal(placed, expected[None][1])
        kernel = placed["blocks"]["self_attention"]["q"]["kernel"]
        assert kernel.addressable_shards[0].data.shape == (3, 12, 24)
        for load, part in ((hub.load_vae, "vae"), (hub.load_text_encoder, "text_encoder")):
            equal(load(parts[part])[1], load(whole / part)[1])
        with pytest.raises(ValueError, match=r"root of a pipeline.*load_dit\(.*load_vae\("):
            hub.load_dit(tmp_path / layout)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_runs_experts_are_written_in_any_layout(workdir, tmp_path, weights):  # noqa: F811
    expected = {name: saved.read()[0] for name, saved in checkpoint.open_run(workdir, weights).experts.items()}
    for layout in hub.LAYOUTS:
        convert.convert(workdir, tmp_path / layout, layout=layout, weights=weights)
        for name, params in expected.items():
            folders = warm_start.DIFFUSERS_FOLDERS if layout in ("diffusers", "orbax") else warm_start.OFFICIAL_FOLDERS
            place = tmp_path / layout / folders[name]
            if layout == "comfyui":
                place = tmp_path / layout / f"diffusion_models/{folders[name]}.safetensors"
            equal(hub.load_dit(place)[1], params)


@pytest.mark.parametrize("layout", hub.LAYOUTS)
def test_both_experts_survive_a_layout(release, tmp_path, layout):
    folder, params = release
    convert.convert(folder, tmp_path / "out", layout=layout)
    mesh = partition.make_mesh(dict.fromkeys(partition.AXES, 1), devices=jax.devices()[:1])
    for name in ("high", "low"):
        found = warm_start.initial_params(tmp_path / "out", name, MODEL, mesh)
        jax.tree.map(np.testing.assert_array_equal, found, params[name])


def test_an_orbax_root_is_opened_as_a_pipeline(tmp_path, whole):
    convert.convert(whole, tmp_path / "out", layout="orbax")
    opened = pipeline.open_pipeline(tmp_path / "out")
    assert set(opened.experts) == {"high", "low"} and opened.config.boundary == 0.875


def test_a_narrower_type_is_stored_and_its_error_is_said(release, tmp_path):
    folder, params = release
    lines = []
    convert.convert(folder, tmp_path / "out", dtype="bfloat16", say=lines.append)
    model, found = hub.load_dit(tmp_path / "out/transformer")
    assert model.config.param_dtype == "bfloat16"
    equal(found, jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(jnp.bfloat16), params["high"]))
    pairs = [(np.float64(a), np.float64(b))
             for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params["high"]), strict=True)]  # fmt: skip
    error = np.sqrt(sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(b).sum() for _, b in pairs))
    said = [line for line in lines if line.startswith("transformer: rounding to bfloat16")]
    assert len(said) == 1 and f"{error:.3g}" in said[0]
    lines.clear()
    convert.convert(tmp_path / "out", tmp_path / "wide", dtype="float32", say=lines.append)
    assert not any("rounding" in line for line in lines)  # nothing is lost
    equal(hub.load_dit(tmp_path / "wide/transformer")[1], jax.tree.map(lambda leaf: leaf.astype(jnp.float32), found))


def test_loras_are_merged_before_rounding(release, tmp_path):
    rng = np.random.default_rng(0)
    file, key = tmp_path / "a.safetensors", "diffusion_model.blocks.1.self_attn.q.lora_"
    save_file({f"{key}A.weight": rng.standard_normal((2, 16)).astype(np.float32),
               f"{key}B.weight": rng.standard_normal((16, 2)).astype(np.float32)}, file)  # fmt: skip
    convert.convert(release[0], tmp_path / "at_once", dtype="bfloat16", loras={"low": f"{file}:0.5"})
    convert.convert(release[0], tmp_path / "merged", loras={"low": f"{file}:0.5"})
    convert.convert(tmp_path / "merged", tmp_path / "rounded", dtype="bfloat16")
    same_files(tmp_path / "at_once", tmp_path / "rounded", ["transformer", "transformer_2"])
    convert.convert(release[0], tmp_path / "without", dtype="bfloat16")
    with pytest.raises(AssertionError):
        same_files(tmp_path / "at_once", tmp_path / "without", ["transformer_2"])


def test_values_that_a_type_cannot_hold_are_refused(tmp_path):
    params = dit_case.params(MODEL, seed=0)
    params["head"]["projection"]["bias"][0] = 1e5
    hub.save_dit(tmp_path / "src", WanDiT(MODEL), params)
    with pytest.raises(ValueError, match=r"head/projection/bias holds values that float16 cannot \(largest 100000"):
        convert.convert(tmp_path / "src", tmp_path / "dst", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_eight_bits_are_stable_after_one_pass_and_never_unasked(whole, tmp_path):
    lines = []
    convert.convert(whole, tmp_path / "a", layout="comfyui", fp8=True, say=lines.append)
    convert.convert(tmp_path / "a", tmp_path / "b", layout="comfyui", fp8=True, say=lines.append)
    same_files(tmp_path / "b", tmp_path / "a", ["diffusion_models", "vae", "text_encoders"])
    said = [float(line.split(" by ")[1].split()[0]) for line in lines if "8-bit storage" in line]
    assert len(said) == 4 and all(0.02 < value < 0.03 for value in said[:2])
    with pytest.raises(ValueError, match="high_noise_model.safetensors holds 8-bit floats: say what to write"):
        convert.convert(tmp_path / "a", tmp_path / "c")
    lines.clear()
    convert.convert(tmp_path / "a", tmp_path / "c", dtype="bfloat16", only=["transformer"], say=lines.append)
    exact = hub.load_dit(tmp_path / "a/diffusion_models/high_noise_model.safetensors", dtype="float32")[1]
    equal(hub.load_dit(tmp_path / "c/transformer")[1], jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), exact))
    assert any("rounding to bfloat16" in line for line in lines)
    with pytest.raises(ValueError, match="--fp8 is of --layout comfyui alone"):
        convert.convert(whole, tmp_path / "d", layout="official", fp8=True)
    with pytest.raises(ValueError, match="--fp8 is of transformers alone"):
        convert.convert(whole, tmp_path / "d", layout="comfyui", fp8=True, only=["vae"])


def test_the_vocabulary_lies_among_the_tensors_of_comfyuis_text_encoder(whole, tmp_path):
    source = shutil.copytree(whole, tmp_path / "source")
    (source / "tokenizer/spiece.model").write_bytes(b"pieces")
    convert.convert(source, tmp_path / "out", layout="comfyui")
    file = tmp_path / "out/text_encoders/umt5_xxl_bf16.safetensors"
    assert load_file(file)["spiece_model"].tobytes() == b"pieces"
    equal(hub.load_text_encoder(file)[1], hub.load_text_encoder(whole / "text_encoder")[1])


def test_a_repository_is_converted_by_its_name(whole, tmp_path, hub_here, steps):  # noqa: F811
    files = [file for file in whole.rglob("*") if file.is_file()]
    hub_here.repositories["wan/tiny"] = {file.relative_to(whole).as_posix(): file.read_bytes() for file in files}
    convert.convert("wan/tiny", tmp_path / "out")
    same_files(tmp_path / "out", whole, ["transformer", "transformer_2", "vae", "text_encoder"])
    with pytest.raises(FileNotFoundError, match="wan/absent"):
        convert.convert("wan/absent", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_parts_are_chosen_and_the_index_tells_which_are_there(whole, tmp_path):
    convert.convert(whole, tmp_path / "out", only=["vae", "transformer_2"], layout="orbax")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model_index.json", "scheduler", "transformer_2", "vae", "wanjax_manifest.json"]  # fmt: skip
    assert {part for part, place in hub.open_layout(tmp_path / "out").items() if place} == {
        "boundary_ratio", "transformer_2", "vae", "scheduler"}  # fmt: skip
    with pytest.raises(ValueError, match="--only colour: the parts are transformer,"):
        convert.convert(whole, tmp_path / "other", only=["colour"])
    with pytest.raises(ValueError, match=f"--only scheduler: {whole} has none, only transformer, .*tokenizer"):
        convert.convert(whole, tmp_path / "other", only=["scheduler"])


def damages(part):
    """name -> what is done to a copy of the transformer's folder, and what the error has to name."""
    shard = "diffusion_pytorch_model-00002-of-"

    def file_of(folder):
        return next(folder.glob(shard + "*"))

    def cut(folder):
        file_of(folder).write_bytes(file_of(folder).read_bytes()[:-7])

    def header(folder):
        raw = bytearray(file_of(folder).read_bytes())
        raw[9] ^= 0xFF
        file_of(folder).write_bytes(raw)

    def change(folder, rename=None, turn=None):
        for file in folder.glob("*.safetensors"):
            tensors = load_file(file)
            if rename in tensors:
                tensors[rename + "s"] = tensors.pop(rename)
            if turn in tensors:
                tensors[turn] = np.ascontiguousarray(tensors[turn].T)
            save_file(tensors, file, {"format": "pt"})
        index = next(folder.glob("*.index.json"))
        if rename:
            index.write_text(index.read_text().replace(f'"{rename}"', f'"{rename}s"'))

    query, up = "blocks.1.attn1.to_q.bias", "blocks.2.ffn.net.0.proj.weight"
    return {
        "truncated": (cut, shard),
        "header": (header, shard),
        "missing": (lambda folder: file_of(folder).unlink(), shard),
        "renamed": (lambda folder: change(folder, rename=query), f"missing {query} .nearest: {query}s"),
        "transposed": (lambda folder: change(folder, turn=up), rf"wrong shape {up}: \(48, 56\), expected \(56, 48\)"),
    }[part]


@pytest.mark.parametrize("damage", ["truncated", "header", "missing", "renamed", "transposed"])
def test_what_is_damaged_is_refused_by_name_before_anything_is_written(whole, tmp_path, monkeypatch, damage):
    source = shutil.copytree(whole, tmp_path / "source")
    spoil, named = damages(damage)
    spoil(source / "transformer_2")  # the last of the transformers: what comes before it must not have been written
    monkeypatch.setattr(convert, "beside", lambda dst: pytest.fail("something was written"))
    for layout in hub.LAYOUTS:
        with pytest.raises((ValueError, FileNotFoundError), match=named) as caught:
            convert.convert(source, tmp_path / "out", layout=layout)
        assert "transformer_2" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("damage", ["truncated", "missing", "metadata", "renamed", "shape"])
def test_a_damaged_orbax_folder_is_refused_by_name(whole, tmp_path, damage):
    convert.convert(whole, tmp_path / "source", layout="orbax", only=["transformer"])
    folder = tmp_path / "source/transformer"
    array = folder / "params/state/blocks.ffn.in.kernel"
    chunk = next(file for file in array.rglob("*") if file.is_file() and file.name != "zarr.json")
    if damage == "truncated":
        chunk.write_bytes(chunk.read_bytes()[:-7])
    elif damage == "missing":
        chunk.unlink()
    elif damage == "metadata":
        (folder / "params/state/_METADATA").write_text("{")
    else:
        if damage == "renamed":
            file = folder / "params/state/_METADATA"
            file.write_text(file.read_text().replace("('blocks', 'ffn', 'in', 'kernel')", "('blocks', 'ffn', 'x', 'y')")
                            .replace('{"key": "ffn", "key_type": 2}, {"key": "in", "key_type": 2}, {"key": "kernel",',
                                     '{"key": "ffn", "key_type": 2}, {"key": "x", "key_type": 2}, {"key": "y",'))
            array.rename(array.with_name("blocks.ffn.x.y"))
        else:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"ffn_dim": 57}))
        (folder / manifest.NAME).unlink()  # as somebody would who edits such a folder
    named = {"truncated": "blocks.ffn.in.kernel/c/.* bytes, .* are recorded",
             "missing": "blocks.ffn.in.kernel/c/.*missing",
             "metadata": "_METADATA", "renamed": "blocks/ffn/in/kernel|blocks.ffn.in.kernel",
             "shape": r"wrong shape blocks/ffn/in/kernel: \(3, 48, 56\), expected \(3, 48, 57\)"}  # fmt: skip
    with pytest.raises(ValueError, match=named[damage]):
        hub.load_dit(folder)
    with pytest.raises(ValueError, match=named[damage]):
        convert.convert(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_chunks_that_go_missing_without_a_manifest_are_not_read_as_zeros(whole, tmp_path):
    convert.convert(whole / "transformer", tmp_path / "source", layout="orbax")
    array = tmp_path / "source/params/state/head.projection.kernel"
    next(file for file in array.rglob("*") if file.is_file() and file.name != "zarr.json").unlink()
    (tmp_path / "source" / manifest.NAME).unlink()
    with pytest.raises(ValueError, match=r"head\.projection\.kernel"):
        hub.load_dit(tmp_path / "source")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_conversion_leaves_nothing_that_looks_whole(whole, tmp_path, monkeypatch, error):
    written = hub_writing.write_network

    def interrupted(network, *args, **kwargs):
        if network.kind == "vae":
            raise error("stop")
        return written(network, *args, **kwargs)

    monkeypatch.setattr(hub_writing, "write_network", interrupted)
    with pytest.raises(error):
        convert.convert(whole, tmp_path / "out", layout="official")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_conversion_left_is_replaced_and_a_strangers_folder_is_not(release, tmp_path):
    left = tmp_path / "out.part"
    left.mkdir()
    (left / "mine.txt").touch()
    with pytest.raises(FileExistsError, match=r"out\.part exists and was not left by a conversion"):
        convert.convert(release[0], tmp_path / "out")
    (left / ".unfinished").touch()
    convert.convert(release[0], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"] and not (tmp_path / "out/mine.txt").exists()


def test_a_full_disk_is_seen_before_work(whole, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=70_000_000))
    convert.convert(whole, tmp_path / "fits")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=67_300_000))
    with pytest.raises(ValueError, match=r"--dst .*new/out takes 0\.00 GB, and .* has 0\.07 GB left"):
        convert.convert(whole, tmp_path / "new/out")
    assert [path.name for path in tmp_path.iterdir()] == ["fits"]


def test_what_cannot_be_converted_is_named_and_nothing_is_left(release, tmp_path):
    folder, _ = release
    with pytest.raises(FileExistsError, match="exists"):
        convert.convert(folder, folder)
    with pytest.raises(ValueError, match="neither a run nor"):
        convert.convert(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="one set of weights"):
        convert.convert(folder, tmp_path / "out", weights="raw")
    with pytest.raises(FileNotFoundError, match="nowhere' does not exist"):
        convert.convert(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match="'zip' is not one of"):
        convert.convert(folder, tmp_path / "out", layout="zip")
    assert not list(tmp_path.iterdir())
