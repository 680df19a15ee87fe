"""Merged LoRAs against diffusers' and peft's own: the same file, the same weights.

diffusers is given what it reads of a convention: of ComfyUI's it takes an alpha in blocks alone, and it drops deltas of
norms. What it does not read is tested against the formula (tests/test_lora.py).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

pytest.importorskip("torch", reason="PyTorch is installed by make parity")
import diffusers
import peft
import torch

from tests.parity import dit, dit_case
from wanjax import lora, lora_export, train
from wanjax.lora_config import LoraConfig
from wanjax.models.dit import DiTConfig, WanDiT
from wanjax.models.rows import export_tensors
from wanjax.models.rows.dit import dit_rows

# block 1 is the beginning of block 10
CONFIG = DiTConfig(width=24, heads=2, layers=11, ffn=40, in_channels=6, out_channels=5, freq_dim=18, text_dim=14)
ROWS = dit_rows(CONFIG)
ATTENTIONS = [f"{attention}_attn.{name}" for attention in ("self", "cross") for name in "qkvo"]
BLOCKS = [f"blocks.{i}.{name}" for i in range(CONFIG.layers) for name in (*ATTENTIONS, "ffn.0", "ffn.2")]
OUTSIDE = ["time_projection.1", "head.head", "text_embedding.0", "text_embedding.2", "time_embedding.0",
           "time_embedding.2"]  # fmt: skip
PEFT_NAMES = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "time_proj", "proj_out", "linear_1"]


def network(seed=0):
    """Ours, and diffusers' with the same parameters."""
    params = dit_case.params(CONFIG, seed)
    model = dit.build(CONFIG, exact_sinusoid=False)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in export_tensors(ROWS, params).items()})
    return jax.tree.map(jnp.asarray, params), model


def whole(*models):
    return diffusers.WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=models[0],
                                 transformer_2=models[1] if models[1:] else None)  # fmt: skip


def same(params, model, before):
    """Compares every tensor of ours with that of the model; returns how many have changed."""
    expected = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    found = export_tensors(ROWS, params)
    assert found.keys() == expected.keys()
    changed = 0
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=1e-6, atol=2e-6, err_msg=name)
        changed += np.abs(tensor - before[name]).max() > 1e-2
    return changed


def shapes():
    """(O, I) of each linear layer and O of its bias, by official names."""
    tensors = export_tensors(ROWS, dit_case.params(CONFIG), "official")
    return {module: tensors[f"{module}.weight"].shape for module in (*BLOCKS, *OUTSIDE)}


def tensors_of(convention, seed=0):
    """A LoRA file's tensors; ranks and alphas differ from layer to layer."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: (0.3 * rng.standard_normal(shape)).astype(np.float32)
    kohya = convention == "musubi-tuner"
    alphas, biases = convention in ("musubi-tuner", "ComfyUI, alpha"), convention == "ComfyUI"
    down, up = ("lora_A", "lora_B") if biases else ("lora_down", "lora_up")
    out = {}
    for i, (module, (o, n)) in enumerate(shapes().items()):
        if module in OUTSIDE and not biases:
            continue
        key, rank = f"lora_unet_{module.replace('.', '_')}" if kohya else f"diffusion_model.{module}", 2 + i % 3
        out |= {f"{key}.{down}.weight": normal(rank, n), f"{key}.{up}.weight": normal(o, rank)}
        if alphas:
            out[f"{key}.alpha"] = np.array(1 + i % 5, np.float32)
        if biases:
            out[f"{key}.diff_b"] = normal(o)
    if convention == "distilled":  # as lightx2v's files: the head's whole delta among factors
        o, n = shapes()["head.head"]
        out |= {"diffusion_model.head.head.diff": normal(o, n), "diffusion_model.head.head.diff_b": normal(o)}
    return out


@pytest.mark.parametrize("convention", ["ComfyUI", "ComfyUI, alpha", "musubi-tuner", "distilled"])
def test_a_file_of_other_tools_means_what_it_means_to_diffusers(tmp_path, convention):
    file = tmp_path / "lora.safetensors"
    save_file(tensors_of(convention), file)
    params, model = network()
    before = export_tensors(ROWS, params)
    pipe = whole(model)
    pipe.load_lora_weights(str(file))
    pipe.fuse_lora(lora_scale=0.7)
    pipe.unload_lora_weights()
    merged, _ = lora.merge_files(params, ROWS, [(file, 0.7)])
    everywhere, head = 2 * (len(BLOCKS) + len(OUTSIDE)), len(BLOCKS) + 2
    changed = {"ComfyUI": everywhere, "distilled": head}.get(convention, len(BLOCKS))
    assert same(merged, model, before) == changed


def randomise(model):
    """Of a model's adapter, every tensor."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)


SETTINGS = {
    "alpha": dict(r=4, lora_alpha=6),
    "ranks and alphas by layer": dict(r=4, lora_alpha=6, rank_pattern={"attn1.to_q": 2, "blocks.1.attn2.to_k": 3},
                                      alpha_pattern={"attn1.to_q": 5, "proj_out": 1}),
    "rank-stabilised": dict(r=4, lora_alpha=6, use_rslora=True),
    "bias": dict(r=3, lora_alpha=7, lora_bias=True),
}  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_file_that_diffusers_wrote_means_what_it_meant(tmp_path, settings):
    params, model = network()
    before = export_tensors(ROWS, params)
    config = peft.LoraConfig(target_modules=PEFT_NAMES, **SETTINGS[settings])
    model.add_adapter(config, "default")
    randomise(model)
    diffusers.WanPipeline.save_lora_weights(
        tmp_path, peft.get_peft_model_state_dict(model, adapter_name="default"),
        transformer_lora_adapter_metadata=config.to_dict() | {"target_modules": PEFT_NAMES},
    )  # fmt: skip
    (file,) = tmp_path.iterdir()
    pipe = whole(network()[1])
    pipe.load_lora_weights(str(file))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    merged, _ = lora.merge_files(params, ROWS, [(file, 1.0)])
    assert same(merged, pipe.transformer, before) > len(BLOCKS)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_folder_that_peft_wrote_means_what_peft_makes_of_it(tmp_path, settings):
    params, model = network()
    before = export_tensors(ROWS, params)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=PEFT_NAMES, **SETTINGS[settings]))
    randomise(wrapped)
    wrapped.save_pretrained(tmp_path)
    merged, _ = lora.merge_files(params, ROWS, [(tmp_path / "adapter_model.safetensors", 1.0)])
    assert same(merged, wrapped.merge_and_unload(), before) > len(BLOCKS)


def test_several_files_with_weights_on_the_low_noise_expert(tmp_path):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file(tensors_of("ComfyUI"), files[0])
    save_file(tensors_of("ComfyUI, alpha", seed=1), files[1])
    params, model = network()
    high = network(seed=1)[1]
    untouched = {name: tensor.clone() for name, tensor in high.state_dict().items()}
    pipe = whole(high, model)
    for name, file in zip("ab", files, strict=True):
        pipe.load_lora_weights(str(file), adapter_name=name, load_into_transformer_2=True)
    pipe.transformer_2.set_adapters(["a", "b"], [0.7, -0.4])
    pipe.fuse_lora(components=["transformer_2"], adapter_names=["a", "b"])
    pipe.unload_lora_weights()
    merged, _ = lora.merge_files(params, ROWS, [(files[0], 0.7), (files[1], -0.4)])
    assert same(merged, model, export_tensors(ROWS, params)) > len(BLOCKS)
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in high.state_dict().items())


OWN = {"diffusers": ("blocks/*_attention/*/kernel", "blocks/ffn/*/kernel", "head/projection/kernel",
                     "text_embedding/in/kernel", "time_projection/kernel", "patch_embedding/kernel"),
       "comfyui": ("blocks/*_attention/*/kernel", "blocks/ffn/*/kernel")}  # fmt: skip


@pytest.mark.parametrize("layout", OWN)
def test_a_lora_that_was_trained_here_is_the_same_network_there(tmp_path, layout):
    """Kept beside the weights by peft, as it is here: the velocity is that of training."""
    params, model = network()
    settings = LoraConfig(rank=3, alpha=5.0, targets=OWN[layout])
    rng = np.random.default_rng(2)
    factors = jax.tree.map(lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32),
                           settings.init(jax.random.key(0), ROWS))  # fmt: skip
    save_file(lora_export.tensors(factors, ROWS, settings, layout), tmp_path / "own.safetensors")
    given = dit_case.inputs(CONFIG)
    inputs = given["latents"], given["timestep"], given["text"]

    def theirs():
        with torch.no_grad():
            latents, timestep, text = map(torch.from_numpy, inputs)
            return model(latents.permute(0, 4, 1, 2, 3), timestep, text).sample.permute(0, 2, 3, 4, 1).numpy()

    model.condition_embedder.timesteps_proj = dit.ExactSinusoid(CONFIG.freq_dim)
    before = theirs()
    whole(model).load_lora_weights(str(tmp_path / "own.safetensors"))
    ours = WanDiT(CONFIG).apply(train.variables_of(factors, params, settings), *inputs)
    assert np.abs(theirs() - before).max() > 0.1
    np.testing.assert_allclose(ours, theirs(), rtol=0, atol=2e-5)
