"""LoRA files of every naming change the weights by what they say, or are refused with all that is wrong with them.

The reference is the formula on the foreign tensors, out of place, in numpy.
"""

import dataclasses
import hashlib
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments import convert
from experiments import sample as launcher
from tests import forked
from tests.parity import dit_case
from tests.test_sample import release, workdir  # noqa: F401 (fixtures)
from tests.tiny_release import DIT, QUICK
from wanjax import generate, hub, lora, partition, video
from wanjax.denoise import Execution
from wanjax.models import rows
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows import Row
from wanjax.models.rows.dit import dit_rows

# No two sizes are the same, and block 1 is the beginning of block 11.
CONFIG = DiTConfig(width=24, heads=2, layers=12, ffn=40, in_channels=6, out_channels=5, freq_dim=18, text_dim=14)
ROWS = dit_rows(CONFIG)
Q, FFN, HEAD = "blocks.1.self_attn.q", "blocks.11.ffn.0", "head.head"
SAME = {Q: "blocks.1.attn1.to_q", FFN: "blocks.11.ffn.net.0.proj", HEAD: "proj_out"}  # official: diffusers
SMALL = QUICK | {"frames": 5, "height": 32, "width": 32, "shift": 1.0}  # a step of each expert
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, dit_case.params(CONFIG, seed=1))


@pytest.fixture(scope="module")
def foreign(params):
    """The network's tensors under their official names."""
    return rows.export_tensors(ROWS, params, "official")


@pytest.fixture(scope="module")
def factors(foreign):
    """down [r, I] and up [O, r] of three linear layers, of different ranks."""
    return {name: (normal(rank, foreign[f"{name}.weight"].shape[1]), normal(foreign[f"{name}.weight"].shape[0], rank))
            for rank, name in enumerate((Q, FFN, HEAD), start=2)}


def saved(path, tensors, **metadata):
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path, metadata=metadata or None)
    return path


def merged(params, *files, **options):
    """Official tensors after merging (file, weight) pairs."""
    result = lora.merge(params, ROWS, [(lora.read_lora(file, ROWS), weight) for file, weight in files], **options)
    return rows.export_tensors(ROWS, result, "official")


def assert_changed_by(found, foreign, deltas):
    """Exactly the tensors of ``deltas`` have changed, each by its delta."""
    for name, before in foreign.items():
        if name in deltas:
            assert np.abs(deltas[name]).max() > 1e-2
            np.testing.assert_allclose(found[name], before + deltas[name], rtol=1e-6, atol=2e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], before, err_msg=name)


NAMINGS = {
    "comfyui": ("diffusion_model.{}.lora_{}.weight", False, "AB"),
    "comfyui, prefixed twice": ("model.diffusion_model.{}.lora_{}.weight", False, "AB"),
    "lora_down": ("diffusion_model.{}.lora_{}.weight", False, ("down", "up")),
    "no prefix": ("{}.lora_{}.weight", False, ("down", "up")),
    "kohya": ("lora_unet_{}.lora_{}.weight", False, ("down", "up")),
    "kohya, diffusers names": ("lora_unet_{}.lora_{}.weight", True, ("down", "up")),
    "diffusers": ("transformer.{}.lora_{}.weight", True, "AB"),
    "peft": ("base_model.model.{}.lora_{}.weight", True, "AB"),
    "peft in memory": ("base_model.model.{}.lora_{}.default.weight", True, "AB"),
    "peft, official names": ("base_model.model.{}.lora_{}.weight", False, "AB"),
}


@pytest.mark.parametrize("alpha", [None, 3.0])
@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_leads_to_the_same_weights(tmp_path, params, foreign, factors, naming, alpha):
    key, diffusers, (down_name, up_name) = NAMINGS[naming]
    tensors, deltas = {}, {}
    for official, (down, up) in factors.items():
        name = SAME[official] if diffusers else official
        name = name.replace(".", "_") if "lora_unet_" in key else name
        tensors[key.format(name, down_name)], tensors[key.format(name, up_name)] = down, up
        if alpha is not None:
            tensors[key.format(name, "").split(".lora_")[0] + ".alpha"] = np.float32(alpha)
        scale = 1.0 if alpha is None else alpha / len(down)
        deltas[f"{official}.weight"] = 0.7 * scale * up @ down
    assert_changed_by(merged(params, (saved(tmp_path / "a.safetensors", tensors), 0.7)), foreign, deltas)


def test_whole_deltas_reach_weights_biases_norms_and_tables(tmp_path, params, foreign):
    targets = {f"{Q}.diff": f"{Q}.weight", f"{Q}.diff_b": f"{Q}.bias", "blocks.3.norm3.diff": "blocks.3.norm3.weight",
               "blocks.3.norm3.diff_b": "blocks.3.norm3.bias", "blocks.0.cross_attn.norm_k.diff":
               "blocks.0.cross_attn.norm_k.weight", "blocks.2.modulation.diff": "blocks.2.modulation",
               "head.modulation.diff": "head.modulation", "patch_embedding.diff": "patch_embedding.weight",
               "patch_embedding.diff_b": "patch_embedding.bias", f"{FFN}.bias.diff": f"{FFN}.bias"}  # fmt: skip
    deltas = {target: normal(*foreign[target].shape) for target in targets.values()}
    file = saved(tmp_path / "a.safetensors", {f"diffusion_model.{key}": deltas[to] for key, to in targets.items()})
    assert_changed_by(merged(params, (file, -0.5)), foreign, {name: -0.5 * delta for name, delta in deltas.items()})


def test_an_alpha_scales_factors_and_their_bias_but_no_whole_delta(tmp_path, params, foreign):
    (down, up), bias, more = (normal(2, 24), normal(24, 2)), normal(24), normal(24)
    file = saved(tmp_path / "a.safetensors", {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up, f"{Q}.diff_b": more,
                                              f"{Q}.lora_B.bias": bias, f"{Q}.alpha": np.array([5], np.int64)})
    deltas = {f"{Q}.weight": 2.5 * up @ down, f"{Q}.bias": 2.5 * bias + more}
    assert_changed_by(merged(params, (file, 1.0)), foreign, deltas)


def test_the_patch_embedding_takes_factors_of_a_convolution(tmp_path, params, foreign):
    shape = foreign["patch_embedding.weight"].shape
    down, up = normal(3, *shape[1:]), normal(shape[0], 3, 1, 1, 1)
    file = saved(tmp_path / "a.safetensors", {"diffusion_model.patch_embedding.lora_down.weight": down,
                                              "diffusion_model.patch_embedding.lora_up.weight": up})
    delta = np.einsum("or,rithw->oithw", up[..., 0, 0, 0], down)
    assert_changed_by(merged(params, (file, 1.0)), foreign, {"patch_embedding.weight": delta})


def test_several_files_add_up_with_their_weights_and_are_rounded_once(tmp_path, params, foreign, factors):
    down, up = factors[Q]
    one = saved(tmp_path / "one.safetensors", {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up,
                                               f"{Q}.alpha": np.float32(1)})
    whole, (other_down, other_up) = normal(24, 24), (normal(4, 24), normal(24, 4))
    two = saved(tmp_path / "two.safetensors", {
        "transformer.blocks.1.attn1.to_q.lora_A.weight": other_down.astype(np.float16), f"{Q}.diff": whole,
        "transformer.blocks.1.attn1.to_q.lora_B.weight": other_up.astype(np.float16)})
    delta = 0.25 * up @ down - 2.0 * (
        other_up.astype(np.float16).astype(np.float32) @ other_down.astype(np.float16).astype(np.float32) + whole)
    assert_changed_by(merged(params, (one, 0.5), (two, -2.0)), foreign, {f"{Q}.weight": delta})
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    before = np.asarray(rows.export_tensors(ROWS, narrow, "official")[f"{Q}.weight"], np.float32)
    found = merged(narrow, (one, 0.5), (two, -2.0))[f"{Q}.weight"]
    assert found.dtype == jnp.bfloat16
    exact = (before + delta).astype(np.float32)
    assert (np.abs(found.astype(np.float32) - exact) <= np.abs(exact) * 2.0**-8 + 1e-5).all()  # half a unit


@pytest.mark.parametrize("settings,scale", [
    ({"r": 2, "lora_alpha": 6}, 3.0),
    ({"r": 2, "lora_alpha": 6, "use_rslora": True}, 6 / 2**0.5),
    ({"r": 2, "lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 5, "to_k": 9}}, 2.5),
])  # fmt: skip
@pytest.mark.parametrize("by", ["diffusers", "peft"])
def test_the_settings_of_peft_are_obeyed(tmp_path, params, foreign, factors, settings, scale, by):
    down, up = factors[Q]
    if by == "diffusers":
        prefix, name = "transformer.", "pytorch_lora_weights.safetensors"
        metadata = {"lora_adapter_metadata": json.dumps({prefix + key: value for key, value in settings.items()})}
    else:
        prefix, name, metadata = "base_model.model.", "adapter_model.safetensors", {}
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}))
    file = saved(tmp_path / name, {f"{prefix}{SAME[Q]}.lora_A.weight": down, f"{prefix}{SAME[Q]}.lora_B.weight": up},
                 **metadata)
    assert_changed_by(merged(params, (file, 1.0)), foreign, {f"{Q}.weight": scale * up @ down})


def test_another_method_of_peft_is_refused(tmp_path, factors):
    down, up = factors[Q]
    tensors = {f"transformer.{SAME[Q]}.lora_A.weight": down, f"transformer.{SAME[Q]}.lora_B.weight": up}
    for settings, message in (('{"transformer.use_dora": true}', "DoRA"), ("[]", "JSON object"), ("{", "JSON object")):
        file = saved(tmp_path / "a.safetensors", tensors, lora_adapter_metadata=settings)
        with pytest.raises(ValueError, match=message):
            lora.read_lora(file, ROWS)


def test_one_error_lists_every_tensor_that_does_not_fit(tmp_path):
    prefix = "diffusion_model."
    wrong = {
        "blocks.12.self_attn.q.lora_A.weight": (normal(2, 24), r"no such tensor in the network \(nearest: blocks\.\d"),
        "lora_unet_blocks_1_self_atn_q.lora_up.weight": (normal(24, 2), r"nearest: blocks_\d+_self_attn_q\)"),
        "blocks.0.self_attn.q.dora_scale": (normal(24), "not one of the known endings"),
        "blocks.1.self_attn.q.lora_A.weight": (normal(2, 24), "the up factor beside it is missing"),
        "blocks.1.self_attn.k.lora_up.weight": (normal(24, 2), "the down factor beside it is missing"),
        "blocks.1.self_attn.v.alpha": (np.float32(1), "the factors beside it are missing"),
        "blocks.1.self_attn.v.lora_B.bias": (normal(24), "the factors beside it are missing"),
        "blocks.2.ffn.0.lora_A.weight": (normal(2, 24), "ranks disagree: 2 here, 3 in"),
        "blocks.3.ffn.0.lora_A.weight": (normal(2, 40), r"wrong shapes, down \(2, 40\) and up \(24, 2\), expected"),
        "blocks.4.ffn.0.diff": (normal(24, 40), r"wrong shape \(24, 40\), expected \(40, 24\)"),
        "blocks.4.self_attn.norm_q.diff_b": (normal(24), "has no bias"),
        "blocks.5.norm3.lora_A.weight": (normal(2, 24), "is not a matrix"),
        "transformer.blocks.6.attn1.to_q.diff_b": (normal(24), r"the same tensor as diffusion_model\.blocks\.6\.self"),
        "blocks.7.self_attn.q.alpha": (normal(2), "expected one finite number"),
    }  # fmt: skip
    partners = {
        "blocks.2.ffn.0.lora_B.weight": normal(40, 3), "blocks.3.ffn.0.lora_B.weight": normal(24, 2),
        "blocks.5.norm3.lora_B.weight": normal(24, 2), "blocks.6.self_attn.q.diff_b": normal(24),
        "blocks.7.self_attn.q.lora_A.weight": normal(2, 24), "blocks.7.self_attn.q.lora_B.weight": normal(24, 2),
    }  # fmt: skip
    full = lambda key: key if key.startswith(("transformer.", "lora_unet_")) else prefix + key
    tensors = {full(key): array for key, (array, _) in wrong.items()}
    tensors |= {full(key): array for key, array in partners.items()}
    with pytest.raises(ValueError, match=f"{len(wrong)} of its {len(tensors)} tensors") as error:
        lora.read_lora(saved(tmp_path / "a.safetensors", tensors), ROWS)
    listed = dict(line.strip().split(": ", 1) for line in str(error.value).splitlines()[1:])
    assert listed.keys() == {full(key) for key in wrong}
    for key, (_, message) in wrong.items():
        assert re.search(message, listed[full(key)]), f"{key}: {listed[full(key)]}"


def test_the_low_noise_experts_tensors_are_read_for_it_and_for_no_other(tmp_path, params, foreign):
    """Of one file for both experts, each with peft's settings in the header, as diffusers names them."""
    pairs = {name: (normal(2, 24), normal(24, 2)) for name in ("transformer", "transformer_2")}
    keys = {name: {f"{name}.{SAME[Q]}.lora_A.weight": down, f"{name}.{SAME[Q]}.lora_B.weight": up}
            for name, (down, up) in pairs.items()}  # fmt: skip
    settings = json.dumps({"transformer.lora_alpha": 6, "transformer_2.lora_alpha": 10})
    both, low, high = (
        saved(tmp_path / f"{i}.safetensors", tensors, lora_adapter_metadata=settings)
        for i, tensors in enumerate((keys["transformer"] | keys["transformer_2"], keys["transformer_2"],
                                     keys["transformer"])))  # fmt: skip
    deltas = {"high": 3 * pairs["transformer"][1] @ pairs["transformer"][0],
              "low": 5 * pairs["transformer_2"][1] @ pairs["transformer_2"][0]}  # fmt: skip
    for file, expert, delta in ((both, "low", "low"), (low, "low", "low"), (both, "high", "high"),
                                (high, "high", "high"), (high, "low", "high"), (high, None, "high")):  # fmt: skip
        found, _ = lora.merge_files(params, ROWS, [(file, 1.0)], expert=expert)
        assert_changed_by(rows.export_tensors(ROWS, found, "official"), foreign, {f"{Q}.weight": deltas[delta]})
    for file, expert, message in (
        (low, "high", r"2 of its 2 tensors are named transformer_2\., .*low-noise expert: give it to .*'low'\)$"),
        (low, None, r"2 of its 2 tensors are named transformer_2\."),
        (both, None, r"2 of its 4 .*'low'\); the other 2 are the high-noise expert's"),
        (high, "middle", "expert 'middle': expected 'high', 'low' or None"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            lora.read_lora(file, ROWS, expert=expert)


def test_a_name_without_dots_that_may_be_two_tensors_is_refused(tmp_path):
    table = [Row((name,), (3,), (None,), name, name) for name in ("a.b", "a_b")]
    file = saved(tmp_path / "a.safetensors", {"lora_unet_a_b.diff": normal(3)})
    with pytest.raises(ValueError, match="may be any of a.b, a_b"):
        lora.read_lora(file, table)


def test_files_that_are_no_lora_are_refused(tmp_path, params):
    with pytest.raises(FileNotFoundError, match="is not a file"):
        lora.read_lora(tmp_path, ROWS)
    with pytest.raises(ValueError, match="holds no tensors"):
        lora.read_lora(saved(tmp_path / "empty.safetensors", {}), ROWS)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "empty.safetensors").read_bytes()[:-1])
    with pytest.raises(ValueError, match="not a readable safetensors"):
        lora.read_lora(tmp_path / "cut.safetensors", ROWS)
    with pytest.raises(ValueError, match="stored as F64"):
        lora.read_lora(saved(tmp_path / "wide.safetensors", {f"{Q}.diff": np.zeros((24, 24))}), ROWS)
    file = saved(tmp_path / "nan.safetensors", {f"{Q}.diff": np.full((24, 24), np.nan, np.float32)})
    with pytest.raises(ValueError, match=f"{Q}.diff holds values that are not finite"):
        merged(params, (file, 1.0))
    with pytest.raises(ValueError, match="weight inf"):
        merged(params, (file, float("inf")))
    with pytest.raises(ValueError, match="read for another network"):
        lora.merge({}, ROWS[:2], [(lora.read_lora(file, ROWS), 1.0)])


def test_sharded_weights_stay_where_they_are(tmp_path, params, foreign, factors):
    file = saved(tmp_path / "a.safetensors", {f"{name}.lora_{part}.weight": array for name, pair in factors.items()
                                              for part, array in zip("AB", pair, strict=True)})
    mesh = partition.make_mesh({"data": 1, "fsdp": 2, "seq": 1, "tensor": 4})
    places = partition.shardings(mesh, rows.logical_axes(ROWS), rows.shapes(ROWS, "float32"))
    spread = jax.tree.map(jax.device_put, params, places)
    result = lora.merge(spread, ROWS, [(lora.read_lora(file, ROWS), 1.0)])
    for leaf, place in zip(jax.tree.leaves(result), jax.tree.leaves(places), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    assert len(result["blocks"]["ffn"]["in"]["kernel"].sharding.device_set) == 8
    found = rows.export_tensors(ROWS, result, "official")
    assert_changed_by(found, foreign, {f"{name}.weight": up @ down for name, (down, up) in factors.items()})


def test_weights_are_kept_or_given_up_as_asked(tmp_path, params, factors):
    down, up = factors[Q]
    file = saved(tmp_path / "a.safetensors", {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up})
    before = jax.tree.map(np.array, params)
    kept = lora.merge(params, ROWS, [(lora.read_lora(file, ROWS), 1.0)])
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert kept["patch_embedding"]["kernel"] is params["patch_embedding"]["kernel"]
    mine = jax.tree.map(jnp.array, params)
    given = lora.merge(mine, ROWS, [(lora.read_lora(file, ROWS), 1.0)], donate=True)
    jax.tree.map(np.testing.assert_array_equal, given, kept)
    deleted = [jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(mine) if leaf.is_deleted()]
    assert deleted == ["['blocks']['self_attention']['q']['kernel']"]  # written in place


@pytest.mark.parametrize("text,expected", [
    ("a.safetensors", [("a.safetensors", 1.0)]),
    ("x/a.safetensors:0.8, b.safetensors:-1", [("x/a.safetensors", 0.8), ("b.safetensors", -1.0)]),
    ("C:/a.safetensors.safetensors:2e-1", [("C:/a.safetensors.safetensors", 0.2)]),
])  # fmt: skip
def test_a_list_of_files_and_weights_is_read(text, expected):
    assert lora.parse(text) == [(Path(file), weight) for file, weight in expected]


@pytest.mark.parametrize("text", ["", "a.safetensors,", "a.pt", "a.safetensors:", "a.safetensors:x", ".safetensors",
                                  "a.safetensors:nan", "a.safetensors=2", "a.safetensors,a.safetensors:2"])
def test_a_list_that_cannot_be_read_is_refused(text):
    with pytest.raises(ValueError, match="LoRA"):
        lora.parse(text)


# -- the launchers ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two LoRAs of the sampled network."""
    folder = tmp_path_factory.mktemp("loras")
    one = {"diffusion_model.blocks.0.ffn.2.lora_down.weight": normal(2, DIT.ffn),
           "diffusion_model.blocks.0.ffn.2.lora_up.weight": normal(DIT.width, 2)}
    delta = np.zeros((DIT.width, DIT.width), np.float32)
    delta[:, -1] = 0.5  # not among the values that a fingerprint reads
    return (saved(folder / "one.safetensors", one),
            saved(folder / "two.safetensors", {"transformer.blocks.0.attn1.to_v.diff": delta}))  # fmt: skip


def test_a_sampled_lora_is_the_converted_one_and_changes_the_clip(release, files, tmp_path):  # noqa: F811
    options = [f"--{name}={value}" for name, value in SMALL.items()]
    done = forked.run(
        [sys.executable, "-m", "experiments.sample", "--checkpoint", str(release), "--prompt", "dawn", "--out",
         str(tmp_path / "a"), "--lora_high", f"{files[0]}:0.8,{files[1]}", "--lora_low", str(files[0]), *options],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "one.safetensors into the high-noise expert's weights, weight 0.8" in done.stdout
    loras = {"high": f"{files[0]}:0.8,{files[1]}", "low": str(files[0])}
    convert.run(release, tmp_path / "converted", loras=loras)
    request = [launcher.Line("dawn", 0)]
    launcher.sample(str(tmp_path / "converted"), request, str(tmp_path / "b"), changes=SMALL)
    launcher.sample(str(release), request, str(tmp_path / "c"), changes=SMALL)
    sampled, converted, without = (video.read(tmp_path / name / "clip_000.mp4") for name in "abc")
    np.testing.assert_array_equal(sampled.frames, converted.frames)
    assert np.abs(sampled.frames.astype(int) - without.frames).max() > 8
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert sampled.metadata["checkpoint"]["loras"] == {
        "high": [{"file": "one.safetensors", "sha256": digests[0], "weight": 0.8},
                 {"file": "two.safetensors", "sha256": digests[1], "weight": 1.0}],
        "low": [{"file": "one.safetensors", "sha256": digests[0], "weight": 1.0}],
    }  # fmt: skip
    assert "loras" not in without.metadata["checkpoint"]
    prints = [clip.metadata["checkpoint"]["fingerprint"] for clip in (sampled, converted, without)]
    assert prints[0] == prints[2] != prints[1]  # of the weights before anything is added, and of those merged for good


def test_a_lora_beside_the_weights_makes_the_clip_of_one_merged_into_them(release, files, tmp_path):  # noqa: F811
    loras = {"high": f"{files[0]}:0.8,{files[1]}", "low": str(files[0])}
    clips = {}
    for name, options in {
        "into": {}, "beside": {"lora_mode": "beside"},
        "streamed": {"lora_mode": "beside", "execution": Execution(holding="blocks")},
    }.items():  # fmt: skip
        launcher.sample(str(release), [launcher.Line("dawn", 0)], str(tmp_path / name), changes=SMALL, loras=loras,
                        **options)  # fmt: skip
        clips[name] = video.read(tmp_path / name / "clip_000.mp4").frames.astype(int)
    apart = np.abs(clips["into"] - clips["beside"])
    assert apart.max() <= 5 and apart.mean() < 0.05  # rounding, and what the video's compression makes of it
    np.testing.assert_array_equal(clips["beside"], clips["streamed"])
    with pytest.raises(ValueError, match="--lora_mode beside"):
        launcher.sample(str(release), [launcher.Line("dawn", 0)], str(tmp_path / "no"), changes=SMALL, loras=loras,
                        execution=Execution(holding="blocks"))  # fmt: skip
    with pytest.raises(ValueError, match="lora_mode = 'over'"):
        launcher.sample(str(release), [], str(tmp_path / "no"), loras=loras, lora_mode="over")


def test_clips_of_other_loras_are_made_anew_and_of_the_same_are_kept(release, files, tmp_path, monkeypatch):  # noqa: F811
    made = []

    def painted(pipeline, requests, **options):
        made.append(pipeline.fingerprint)
        yield None

    monkeypatch.setattr(generate, "latents", painted)
    monkeypatch.setattr(generate, "frames", lambda *_: iter(np.zeros((5, 32, 32, 3), np.uint8)))
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(files[1].read_bytes())
    for number, loras in enumerate([{}, {"high": str(files[1])}, {"high": f"{files[1]}:2"}, {"low": str(files[1])}], 1):
        launcher.sample(str(release), [launcher.Line("a", 0)], str(tmp_path / "out"), changes=SMALL, loras=loras)
        assert len(made) == number
    assert len(set(made)) == 1  # the fingerprint alone would have kept them all
    launcher.sample(str(release), [launcher.Line("a", 0)], str(tmp_path / "out"), changes=SMALL,
                    loras={"low": str(moved)})  # fmt: skip
    assert len(made) == 4


def test_a_lora_without_an_expert_at_work_is_refused(workdir, release, files, tmp_path):  # noqa: F811
    request = [launcher.Line("a", 0)]
    with pytest.raises(ValueError, match="lora_low: there is no low-noise expert"):
        launcher.sample(str(workdir / "high"), request, str(tmp_path / "a"), changes={"boundary": 0.0},
                        loras={"low": str(files[0])})  # fmt: skip
    with pytest.raises(ValueError, match="lora_low would do nothing: no step falls to"):
        launcher.sample(str(workdir), request, str(tmp_path / "a"), changes={"boundary": 0.0},
                        loras={"low": str(files[0])})  # fmt: skip
    hub.save_dit(tmp_path / "src" / "transformer", *hub.load_dit(release / "transformer"))
    with pytest.raises(ValueError, match="--lora_low: .* has no low-noise expert"):
        convert.run(tmp_path / "src", tmp_path / "dst", loras={"low": str(files[0])})
    with pytest.raises(ValueError, match="does not fit the network"):
        other = dataclasses.replace(DIT, width=48)
        hub.save_dit(tmp_path / "wide" / "transformer", WanDiT(other), dit_case.params(other, seed=0))
        convert.run(tmp_path / "wide", tmp_path / "dst", loras={"high": str(files[0])})
    assert not (tmp_path / "dst").exists()
