"""Foreign layouts in and out."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from wanjax import hub, partition
from wanjax.models import rows
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows.dit import dit_rows
from wanjax.models.rows.umt5 import umt5_rows
from wanjax.models.rows.vae import vae_rows
from wanjax.models.umt5 import UMT5Config, UMT5Encoder
from wanjax.models.vae import VAEConfig, WanVAE

# No two sizes are the same, so that none can stand for another.
DIT = WanDiT(DiTConfig(width=48, heads=4, layers=3, ffn=56, in_channels=36, out_channels=16, freq_dim=32, text_dim=24))
VAE = WanVAE(VAEConfig(base_dim=8, num_res_blocks=1, latents_mean=(0.5,) * 16, latents_std=(2.0,) * 16))
UMT5 = UMT5Encoder(UMT5Config(vocab_size=97, d_model=48, d_kv=6, d_ff=80, num_heads=5, num_layers=3))
OFFICIAL_CONFIG = {  # the fields of Wan2.2's own files
    "_class_name": "WanModel", "_diffusers_version": "0.33.0", "dim": 48, "eps": 1e-06, "ffn_dim": 56, "freq_dim": 32,
    "in_dim": 36, "model_type": "i2v", "num_heads": 4, "num_layers": 3, "out_dim": 16, "text_len": 512,
}  # fmt: skip


def random_params(table, dtype="float32"):
    rng = np.random.default_rng(0)
    return rows.tree(table, lambda row: rng.standard_normal(row.full_shape).astype(np.float32).astype(jnp.dtype(dtype)))


@pytest.fixture(scope="module")
def params():
    return random_params(dit_rows(DIT.config))


def equal(found, expected):
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def edit_config(folder, **changes):
    """Sets fields of config.json; None removes one."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


@pytest.mark.parametrize("layout", hub.LAYOUTS)
@pytest.mark.parametrize("shard_bytes", [10**9, 30_000])
def test_a_transformer_comes_back_from_every_layout(tmp_path, params, layout, shard_bytes):
    hub.save_dit(tmp_path, DIT, params, layout=layout, max_shard_bytes=shard_bytes)
    model, found = hub.load_dit(tmp_path)
    assert model == DIT
    equal(found, params)
    files = sorted(file.name for file in tmp_path.iterdir())
    assert all(not name.startswith(".") for name in files)
    if layout == "comfyui":
        assert files == ["diffusion_model.safetensors"]
    elif layout == "orbax":
        assert files == ["config.json", "params", "wanjax_manifest.json"]
    else:
        assert "config.json" in files
        assert ("diffusion_pytorch_model.safetensors.index.json" in files) == (shard_bytes == 30_000)
        assert ("diffusion_pytorch_model.safetensors" in files) == (shard_bytes > 30_000)


def test_names_are_the_layouts_own(tmp_path, params):
    expected = {"diffusers": "blocks.2.attn2.to_out.0.weight", "official": "blocks.2.cross_attn.o.weight",
                "comfyui": "blocks.2.cross_attn.o.weight"}
    for layout, name in expected.items():
        hub.save_dit(tmp_path / layout, DIT, params, layout=layout)
        tensors = load_file(next((tmp_path / layout).glob("*.safetensors")))
        np.testing.assert_array_equal(tensors[name], params["blocks"]["cross_attention"]["o"]["kernel"][2].T)


def test_sizes_that_the_official_config_omits_are_read_from_tensors(tmp_path, params):
    hub.save_dit(tmp_path, DIT, params, layout="official")
    (tmp_path / "config.json").write_text(json.dumps(OFFICIAL_CONFIG))
    assert hub.load_dit(tmp_path)[0] == DIT
    edit_config(tmp_path, in_dim=None, out_dim=None, dim=None, freq_dim=None, ffn_dim=None, num_layers=None, eps=None)
    assert hub.load_dit(tmp_path)[0] == DIT


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
def test_a_single_file_without_config_opens(tmp_path, prefix):
    model = WanDiT(DiTConfig(width=256, heads=2, layers=1, ffn=8, freq_dim=8, text_dim=4))
    params = random_params(dit_rows(model.config))
    tensors = rows.export_tensors(dit_rows(model.config), params, "official")
    file = tmp_path / "wan.safetensors"
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, file)
    found, again = hub.load_dit(file)
    assert found == model
    equal(again, params)


def test_dtype_is_the_stored_one_unless_asked(tmp_path):
    stored = random_params(dit_rows(DIT.config), "bfloat16")
    hub.save_dit(tmp_path, DIT, stored)
    model, found = hub.load_dit(tmp_path)
    assert (model.config.dtype, model.config.param_dtype) == ("bfloat16", "bfloat16")
    equal(found, stored)
    model, found = hub.load_dit(tmp_path, dtype="float32")
    assert (model.config.dtype, model.config.param_dtype) == ("float32", "float32")
    equal(found, jax.tree.map(lambda leaf: leaf.astype(np.float32), stored))
    with pytest.raises(ValueError, match="int8"):
        hub.load_dit(tmp_path, dtype="int8")


def test_parameters_are_spread_over_a_mesh(tmp_path, params):
    hub.save_dit(tmp_path, DIT, params)
    mesh = partition.make_mesh({"fsdp": 4, "tensor": 2})
    model, found = hub.load_dit(tmp_path, mesh=mesh)
    assert model.mesh == mesh
    kernel = found["blocks"]["self_attention"]["q"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 12, 24)
    equal(found, params)
    hub.save_dit(tmp_path / "again", model, found)
    equal(hub.load_dit(tmp_path / "again")[1], params)


def test_codec_and_text_encoder_come_back(tmp_path):
    for model, table, save, load in (
        (VAE, vae_rows(VAE.config), hub.save_vae, hub.load_vae),
        (UMT5, umt5_rows(UMT5.config), hub.save_text_encoder, hub.load_text_encoder),
    ):
        folder, params = tmp_path / type(model).__name__, random_params(table)
        save(folder, model, params)
        found, again = load(folder)
        assert found == model
        equal(again, params)
        assert load(folder, dtype="bfloat16")[0].config.dtype == "bfloat16"


def test_a_codec_opens_from_its_file(tmp_path):
    hub.save_vae(tmp_path, VAE, random_params(vae_rows(VAE.config)))
    assert hub.load_vae(tmp_path / "diffusion_pytorch_model.safetensors")[0] == VAE


def test_the_token_table_may_have_either_name_or_both(tmp_path):
    params = random_params(umt5_rows(UMT5.config))
    hub.save_text_encoder(tmp_path, UMT5, params)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    both = {**tensors, "encoder.embed_tokens.weight": tensors["shared.weight"].copy()}
    only_tied = {name: tensor for name, tensor in both.items() if name != "shared.weight"}
    for stored in (both, only_tied):
        save_file(stored, file)
        equal(hub.load_text_encoder(tmp_path)[1], params)
    save_file({**both, "encoder.embed_tokens.weight": both["shared.weight"] + 1}, file)
    with pytest.raises(ValueError, match="differ"):
        hub.load_text_encoder(tmp_path)


def test_a_pipelines_root_is_refused_and_opened_by_parts(tmp_path, params):
    hub.save_dit(tmp_path / "transformer", DIT, params)
    hub.save_vae(tmp_path / "vae", VAE, random_params(vae_rows(VAE.config)))
    index = {"_class_name": "WanPipeline", "boundary_ratio": 0.875, "vae": ["diffusers", "AutoencoderKLWan"],
             "transformer": ["diffusers", "WanTransformer3DModel"], "transformer_2": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for load in (hub.load_dit, hub.load_vae, hub.load_text_encoder):
        with pytest.raises(ValueError, match=r"root of a pipeline.*load_dit\(.*transformer.*load_vae\(.*vae"):
            load(tmp_path)
    assert hub.open_layout(tmp_path) == {"boundary_ratio": 0.875, "transformer": tmp_path / "transformer",
                                         "vae": tmp_path / "vae"}
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "transformer_2": index["transformer"]}))
    with pytest.raises(FileNotFoundError, match="transformer_2"):
        hub.open_layout(tmp_path)
    with pytest.raises(FileNotFoundError, match="no model_index.json"):
        hub.open_layout(tmp_path / "vae")


def test_an_official_root_is_refused(tmp_path, params):
    hub.save_dit(tmp_path / "high_noise_model", DIT, params, layout="official")
    with pytest.raises(ValueError, match="high_noise_model"):
        hub.load_dit(tmp_path)


def test_wrong_tensors_are_listed_in_one_error(tmp_path, params):
    hub.save_dit(tmp_path, DIT, params)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["blocks.1.attn1.to_queries.weight"] = tensors.pop("blocks.1.attn1.to_q.weight")
    tensors["proj_out.bias"] = np.zeros(7, np.float32)
    turned = "blocks.2.ffn.net.2.weight"
    tensors[turned] = np.ascontiguousarray(tensors[turned].T)
    save_file(tensors, file)
    with pytest.raises(ValueError) as caught:
        hub.load_dit(tmp_path)
    message = str(caught.value)
    assert "missing blocks.1.attn1.to_q.weight" in message and "unexpected blocks.1.attn1.to_queries.weight" in message
    assert "wrong shape proj_out.bias: (7,), expected (64,)" in message and str(tmp_path) in message
    assert f"wrong shape {turned}: (56, 48), expected (48, 56)" in message


@pytest.mark.parametrize("change", [{"qk_norm": "rms_norm"}, {"cross_attn_norm": False}, {"added_kv_proj_dim": 1024},
                                    {"_class_name": "WanVACETransformer3DModel"}])
def test_a_config_of_another_network_is_refused(tmp_path, params, change):
    hub.save_dit(tmp_path, DIT, params)
    edit_config(tmp_path, **change)
    with pytest.raises(ValueError, match=next(iter(change))):
        hub.load_dit(tmp_path)


def test_a_setting_without_effect_is_taken_and_an_unknown_one_is_said(tmp_path, params, caplog):
    hub.save_dit(tmp_path, DIT, params)
    edit_config(tmp_path, rope_max_seq_len=2048)
    assert hub.load_dit(tmp_path)[0] == DIT and not caplog.records
    edit_config(tmp_path, colour="blue")
    assert hub.load_dit(tmp_path)[0] == DIT
    assert "colour" in caplog.text


def test_the_index_is_read_not_guessed(tmp_path, params):
    hub.save_dit(tmp_path, DIT, params, max_shard_bytes=30_000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    index_file = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    renamed = shards[0].rename(tmp_path / "first.safetensors")
    with pytest.raises(FileNotFoundError, match=shards[0].name):
        hub.load_dit(tmp_path)
    index["weight_map"] = {name: renamed.name if file == shards[0].name else file
                           for name, file in index["weight_map"].items()}
    index_file.write_text(json.dumps(index))
    equal(hub.load_dit(tmp_path)[1], params)
    index_file.unlink()
    with pytest.raises(ValueError, match="several sets of weights"):
        hub.load_dit(tmp_path)


def test_a_variant_may_lie_beside_the_weights(tmp_path, params):
    hub.save_dit(tmp_path, DIT, params)
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not read")
    equal(hub.load_dit(tmp_path)[1], params)


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        hub.load_dit(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no .safetensors file"):
        hub.load_vae(tmp_path)
    (tmp_path / "Wan2.1_VAE.pth").write_bytes(b"")
    for path in (tmp_path, tmp_path / "Wan2.1_VAE.pth"):
        with pytest.raises((FileNotFoundError, ValueError), match="pth"):
            hub.load_vae(path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ValueError, match="model.safetensors is not a readable safetensors file"):
        hub.load_vae(tmp_path)
    save_file({"a.weight": np.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not a Wan codec.*found a.weight"):
        hub.load_vae(tmp_path)


def test_saving_again_leaves_nothing_of_the_earlier_set(tmp_path, params):
    hub.save_dit(tmp_path, DIT, params, max_shard_bytes=30_000)
    (tmp_path / "luminance.json").write_text("{}")
    other = jax.tree.map(lambda leaf: -leaf, params)
    hub.save_dit(tmp_path, DIT, other)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json", "diffusion_pytorch_model.safetensors", "luminance.json"]
    equal(hub.load_dit(tmp_path)[1], other)


def test_a_failed_save_keeps_what_was_there(tmp_path, params, monkeypatch):
    hub.save_dit(tmp_path, DIT, params)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wanjax.weight_files._put", full)
    with pytest.raises(OSError, match="No space left"):
        hub.save_dit(tmp_path, DIT, jax.tree.map(lambda leaf: -leaf, params))
    assert len(list(tmp_path.iterdir())) == 2
    equal(hub.load_dit(tmp_path)[1], params)


def test_foreign_parameters_are_not_saved(tmp_path, params):
    with pytest.raises(ValueError, match="layout 'kohya' is not one of"):
        hub.save_dit(tmp_path / "a", DIT, params, layout="kohya")
    with pytest.raises(ValueError, match="missing.*head"):
        hub.save_dit(tmp_path / "a", DIT, {name: tree for name, tree in params.items() if name != "head"})
    other = WanDiT(DiTConfig(**{**vars(DIT.config), "ffn": 64}))
    with pytest.raises(ValueError, match="blocks/ffn/in/kernel has shape"):
        hub.save_dit(tmp_path / "a", other, params)
