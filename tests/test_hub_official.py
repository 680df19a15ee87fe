"""Wan's own releases: codec and text encoder of torch.save, and the root that holds everything."""

import dataclasses
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import torch_writing
from tests.test_hub import DIT, UMT5, equal, random_params
from wanjax import hub, pipeline
from wanjax.models import rows
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows.dit import dit_rows
from wanjax.models.rows.umt5 import umt5_rows
from wanjax.models.rows.vae import vae_rows
from wanjax.models.umt5 import UMT5Config
from wanjax.models.vae import WAN22, VAEConfig, WanVAE

# With the published statistics of latents, which no tensor tells.
VAE = WanVAE(VAEConfig(base_dim=4, num_res_blocks=1, dim_mult=(1, 3, 2, 4), temporal_downsample=(True, False, True)))
FULL_TEXT = UMT5Config(num_layers=1)


def write_pth(file, table, params, dtype="float32"):
    """The official tensors of a network, as torch.save writes them."""
    tensors = rows.export_tensors(table, params, "official")
    torch_writing.save({name: tensor.astype(jnp.dtype(dtype)) for name, tensor in tensors.items()}, file)


@pytest.fixture(scope="module")
def codec_params():
    return random_params(vae_rows(VAE.config))


@pytest.fixture(scope="module")
def text_params():
    return random_params(umt5_rows(UMT5.config))


def test_the_official_codec_opens_and_its_sizes_are_read_from_its_tensors(tmp_path, codec_params):
    write_pth(tmp_path / "Wan2.1_VAE.pth", vae_rows(VAE.config), codec_params)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WanModel", "dim": 5120}))  # the transformer's
    model, found = hub.load_vae(tmp_path / "Wan2.1_VAE.pth")
    assert model == VAE
    equal(found, codec_params)
    assert hub.load_vae(tmp_path / "Wan2.1_VAE.pth", dtype="bfloat16")[0].config.dtype == "bfloat16"


@pytest.mark.parametrize("naming", ["official", "diffusers"])
def test_the_codec_of_wan22_is_known_by_its_tensors_and_takes_published_statistics(tmp_path, naming):
    config = dataclasses.replace(WAN22, base_dim=8, decoder_base_dim=16)
    params = random_params(vae_rows(config))
    torch_writing.save(rows.export_tensors(vae_rows(config), params, naming), tmp_path / "Wan2.2_VAE.pth")
    model, found = hub.load_vae(tmp_path / "Wan2.2_VAE.pth")
    assert model.config == config and model.strides == (4, 16, 16)
    equal(found, params)
    hub.save_vae(tmp_path / "written", model, found, layout="official")
    again, back = hub.load_vae(tmp_path / "written/Wan2.2_VAE.safetensors")
    assert again == model
    equal(back, params)


def test_the_official_text_encoder_opens_and_its_sizes_are_read_from_its_tensors(tmp_path, text_params):
    stored = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), text_params)
    file = tmp_path / "models_t5_umt5-xxl-enc-bf16.pth"
    write_pth(file, umt5_rows(UMT5.config), stored, "bfloat16")
    model, found = hub.load_text_encoder(file)
    assert (model.config.dtype, model.config.num_heads, model.config.d_kv) == ("bfloat16", 5, 6)
    assert vars(model.config) | {"dtype": "float32", "param_dtype": "float32"} == vars(UMT5.config)
    equal(found, stored)


def test_official_names_are_those_of_the_reference():
    """Shapes of wan/modules/t5.py at full width."""
    shapes = {name: row.foreign_shape for row in umt5_rows(FULL_TEXT) for name in row.foreign_names("official")}
    assert shapes == {
        "token_embedding.weight": (256384, 4096), "norm.weight": (4096,),
        "blocks.0.norm1.weight": (4096,), "blocks.0.norm2.weight": (4096,),
        **{f"blocks.0.attn.{name}.weight": (4096, 4096) for name in "qkvo"},
        "blocks.0.ffn.gate.0.weight": (10240, 4096), "blocks.0.ffn.fc1.weight": (10240, 4096),
        "blocks.0.ffn.fc2.weight": (4096, 10240), "blocks.0.pos_embedding.embedding.weight": (32, 64),
    }  # fmt: skip


def test_sizes_without_a_config_are_found_in_either_naming(tmp_path, codec_params, text_params):
    for layout in ("diffusers", "official", "comfyui"):
        folder = tmp_path / layout
        hub.save_vae(folder / "codec", VAE, codec_params, layout=layout)
        hub.save_text_encoder(folder / "text", UMT5, text_params, layout=layout)
        for part, load, model in (("codec", hub.load_vae, VAE), ("text", hub.load_text_encoder, UMT5)):
            (file,) = (folder / part).glob("*.safetensors")
            save_file(load_file(file), tmp_path / "bare.safetensors")
            assert load(tmp_path / "bare.safetensors")[0] == model


def test_codec_and_text_encoder_are_written_by_official_names(tmp_path, codec_params, text_params):
    own = WanVAE(VAEConfig(**{**vars(VAE.config), "latents_mean": (0.5,) * 16}))  # what the tensors do not tell
    hub.save_vae(tmp_path, own, codec_params, layout="official")
    hub.save_text_encoder(tmp_path, UMT5, text_params, layout="official")
    files = ["Wan2.1_VAE.safetensors", "models_t5_umt5-xxl-enc-fp32.safetensors"]
    assert sorted(file.name for file in tmp_path.iterdir()) == files
    for name, load, model, params, table in (
        (files[0], hub.load_vae, own, codec_params, vae_rows(own.config)),
        (files[1], hub.load_text_encoder, UMT5, text_params, umt5_rows(UMT5.config)),
    ):
        chex.assert_trees_all_equal(load_file(tmp_path / name), rows.export_tensors(table, params, "official"))
        found, again = load(tmp_path / name)
        assert found == model
        equal(again, params)
    for save, model, params in ((hub.save_vae, own, codec_params), (hub.save_text_encoder, UMT5, text_params)):
        with pytest.raises(ValueError, match="layout 'torch' is not one of diffusers, official, comfyui, orbax"):
            save(tmp_path, model, params, layout="torch")


@pytest.fixture(scope="module")
def release(tmp_path_factory, codec_params, text_params):
    """The official root, as Wan2.2-T2V-A14B is published, at tiny width."""
    from transformers import ByT5Tokenizer

    folder = tmp_path_factory.mktemp("Wan2.2-T2V-A14B")
    model = WanDiT(DiTConfig(width=24, heads=2, layers=1, ffn=32, freq_dim=16, text_dim=48))
    for name in ("high_noise_model", "low_noise_model"):
        hub.save_dit(folder / name, model, random_params(dit_rows(model.config)), layout="official")
    write_pth(folder / "Wan2.1_VAE.pth", vae_rows(VAE.config), codec_params)
    write_pth(folder / "models_t5_umt5-xxl-enc-bf16.pth", umt5_rows(UMT5.config), text_params)
    ByT5Tokenizer().save_pretrained(str(folder / "google" / "umt5-xxl"))
    return folder


def test_the_parts_of_an_official_root_are_found(release):
    assert hub.open_layout(release) == {
        "boundary_ratio": 0.875,
        "transformer": release / "high_noise_model",
        "transformer_2": release / "low_noise_model",
        "vae": release / "Wan2.1_VAE.pth",
        "text_encoder": release / "models_t5_umt5-xxl-enc-bf16.pth",
        "tokenizer": release / "google/umt5-xxl",
    }
    for load in (hub.load_dit, hub.load_vae, hub.load_text_encoder):
        with pytest.raises(ValueError, match=r"load_dit\(.*high_noise_model.*load_vae\(.*Wan2\.1_VAE\.pth.*models_t5"):
            load(release)


def test_an_official_root_is_sampled_from(release):
    opened = pipeline.open_pipeline(release)
    assert set(opened.experts) == {"high", "low"} and opened.config.boundary == 0.875
    assert opened.vae == VAE and "official layout" in opened.description and "width 24" in opened.description


def test_an_official_root_that_is_not_whole_names_what_is_absent(release, tmp_path):
    shutil.copytree(release / "high_noise_model", tmp_path / "high_noise_model")
    with pytest.raises(ValueError, match="has no vae, text_encoder, tokenizer"):
        pipeline.open_pipeline(tmp_path)
    for name in ("Wan2.1_VAE.pth", "Wan2.2_VAE.pth"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"Wan2\.1_VAE\.pth, Wan2\.2_VAE\.pth: keep one"):
        hub.open_layout(tmp_path)


@pytest.mark.parametrize(("task", "boundary"), [("i2v", 0.9), ("t2v", 0.875), ("s2v", None)])
def test_the_boundary_is_that_of_the_experts_task(tmp_path, task, boundary):
    for name in ("high_noise_model", "low_noise_model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": task}))
    if boundary is None:
        with pytest.raises(ValueError, match="model_type 's2v'"):
            hub.open_layout(tmp_path)
    else:
        assert hub.open_layout(tmp_path)["boundary_ratio"] == boundary


def test_a_release_of_one_transformer_is_its_own_folder(tmp_path):
    hub.save_dit(tmp_path, DIT, random_params(dit_rows(DIT.config)), layout="official")
    (tmp_path / "Wan2.1_VAE.pth").touch()
    assert hub.open_layout(tmp_path) == {
        "boundary_ratio": None, "transformer": tmp_path, "vae": tmp_path / "Wan2.1_VAE.pth",
    }  # fmt: skip
    assert hub.load_dit(tmp_path)[0] == DIT


def test_renamed_and_transposed_tensors_of_a_pth_are_refused_by_name(tmp_path, text_params):
    tensors = rows.export_tensors(umt5_rows(UMT5.config), text_params, "official")
    tensors["blocks.1.attn.query.weight"] = tensors.pop("blocks.1.attn.q.weight")
    tensors["blocks.2.ffn.fc1.weight"] = tensors["blocks.2.ffn.fc1.weight"].T
    torch_writing.save(tensors, tmp_path / "t5.pth")
    with pytest.raises(ValueError) as caught:
        hub.load_text_encoder(tmp_path / "t5.pth")
    message = str(caught.value)
    assert str(tmp_path) in message and "unexpected blocks.1.attn.query.weight" in message
    assert "missing blocks.1.attn.q.weight (nearest: blocks.1.attn.query.weight)" in message
    assert "wrong shape blocks.2.ffn.fc1.weight: (48, 80), expected (80, 48)" in message


def test_a_pth_is_the_same_network_as_the_folder_of_diffusers(tmp_path, text_params):
    hub.save_text_encoder(tmp_path / "diffusers", UMT5, text_params)
    write_pth(tmp_path / "t5.pth", umt5_rows(UMT5.config), text_params)
    ids, mask = np.arange(12).reshape(2, 6), np.array([[1] * 6, [1, 1, 0, 0, 0, 0]])
    outputs = []
    for path in (tmp_path / "diffusers", tmp_path / "t5.pth"):
        model, params = hub.load_text_encoder(path)
        outputs.append(model.apply({"params": params}, ids, mask))
    np.testing.assert_array_equal(*outputs)
