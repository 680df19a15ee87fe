"""A config is refused before any work is done, with the field, the value and the remedy; a good one is frozen."""
import dataclasses
import pathlib

import pytest

from wanjax import config
from wanjax.models import rows
from wanjax.models.dit import WanDiT
from wanjax.models.rows.dit import dit_rows
from wanjax.models.vae import WAN22, VAEConfig, WanVAE

ROOT = pathlib.Path(__file__).parents[1]
TINY = ROOT / "configs/light_scenes_tiny.py"
A14B = ROOT / "configs/t2v_a14b.py"
SINGLE = {"train.boundary": 0.0, "sample.boundary": 0.0}
ONLY_PIXELS = {"objective.temporal_luminance.weight": 0.1, "objective.velocity.weight": 0.0,
               "objective.light.weight": 0.0}


def test_every_config_loads_and_survives_json():
    for path in sorted((ROOT / "configs").glob("[!_]*.py")):
        experiment = config.load(path)
        assert config.from_dict(config.to_dict(experiment)) == experiment


def test_configs_are_frozen():
    experiment = config.load(TINY)
    with pytest.raises(dataclasses.FrozenInstanceError):
        experiment.seed = 1


def test_overrides_reach_the_field():
    assert config.load(TINY, {"model.width": 64, "objective.light.weight": 0.5}).objective.light.weight == 0.5


def test_the_real_model_is_counted_without_allocating_it():
    assert rows.count(dit_rows(config.load(A14B).model)) == 14_288_491_584


@pytest.mark.parametrize(("overrides", "words"), [
    ({"model.widht": 64}, ["model.widht", "did you mean 'width'"]),
    ({"modle.width": 64}, ["modle", "did you mean 'model'"]),
    ({"model.width": "wide"}, ["config.model.width", "'wide'", "int"]),
    ({"seed": 1.5}, ["config.seed", "1.5", "int"]),
    ({"model.heads": 3}, ["heads", "3", "128"]),
    ({"data.frames": 16}, ["config.data.frames = 16", "4n+1", "13 or 17"]),
    ({"data.height": 60}, ["config.data.height = 60", "multiple of 16", "48 or 64"]),
    ({"mesh.data": 3, "mesh.fsdp": 1}, ["config.data.batch = 16", "multiple of 3"]),
    ({"train.accumulate": 5}, ["config.data.batch = 16", "accumulate 5"]),
    ({"mesh.seq": -1}, ["at most one axis"]),
    ({"mesh.seq": 0}, ["config.mesh.seq = 0"]),
    ({"mesh.tensor": 3}, ["config.model.width = 128", "config.mesh.tensor = 3"]),
    ({"train.expert": "middle"}, ["expert", "'middle'", "'high', 'low' or 'both'"]),
    ({"train.boundary": 0.9}, ["config.sample.boundary", "0.5", "0.9"]),
    ({"data.cache_dir": ""}, ["config.data.cache_dir is empty"]),
    ({"model.param_dtype": "bfloat16"}, ["config.model.param_dtype = 'bfloat16'", "held in float32"]),
    ({"model.text_dim": 32}, ["config.model.text_dim = 32", "64 wide"]),
    ({"optimizer.learning_rate": -1.0}, ["learning_rate", "-1.0"]),
    ({"optimizer.state_memory": "pinned"}, ["config.optimizer", "state_memory = 'pinned'", "device, host"]),
    ({"optimizer.learning_rate": float("nan")}, ["config.optimizer.learning_rate", "finite"]),
    ({"objective.velocity.weight": 0.0, "objective.light.weight": 0.0}, ["every weight is 0"]),
    ({"objective.light.weight": ((100, 0.1), (0, 0.0))}, ["light.weight", "rising steps"]),
    ({"data.frames": 5}, ["orders", "2 latent frames"]),
    ({"objective.temporal_luminance.weight": 0.1, "train.expert": "high"}, ["temporal_luminance", "'high'", "'low'"]),
    ({"objective.temporal_luminance.weight": 0.1, "objective.velocity.weight": 0.0, "objective.light.weight": 0.0},
     ["temporal_luminance is the only term", "give another term a weight"]),
    ({"objective.temporal_luminance.weight": 0.1, "objective.temporal_luminance.clips": 3},
     ["temporal_luminance.clips = 3", "divides the 16 clips"]),
    ({"objective.temporal_luminance.cut": 0.6}, ["config.objective.temporal_luminance", "cut = 0.6"]),
    ({"objective.light_consistency.mode": "both"}, ["'both'", "'relative' or 'absolute'"]),
    ({"objective.light_consistency.weight": 0.1, "data.frames": 1}, ["light_consistency", "config.data.frames = 1"]),
    ({"objective.change_weight.limit": 0.5}, ["config.objective.change_weight", "limit = 0.5"]),
    ({"objective.shadow.weight": 0.1, "model.layers": 2}, ["objective.shadow.head", "blocks (1, 1, 1)"]),
    ({"objective.shadow.head.kernel": 2}, ["kernel = 2", "odd"]),
    ({"data.train_clips": -8}, ["config.data.train_clips = -8"]),
    ({"data.train_clips": 80, "data.source": "my_clips"}, ["config.data.train_clips = 80", "'my_clips'"]),
    ({"data.visibility_cell": 3}, ["config.data.visibility_cell = 3", "divides the codec's stride 8"]),
    ({"data.caption_dropout": 1.0}, ["config.data.caption_dropout", "[0, 1)"]),
    ({**SINGLE, "train.expert": "low"}, ["expert = 'low'", "boundary = 0", "called 'high'"]),
    ({"train.first_frame": 1.5}, ["first_frame = 1.5", "[0, 1]"]),
    ({"train.first_frame": 0.5, "data.frames": 1}, ["config.train.first_frame = 0.5", "config.data.frames = 1"]),
    ({"model.in_channels": 36}, ["config.train.first_frame = 0.0", "36 channels", "set it to 1"]),
    ({"model.in_channels": 32}, ["config.model.in_channels = 32", "out_channels = 16", "36 for a transformer"]),
    ({"codec_strides": (4, 16, 16), "data.height": 48}, ["config.data.height = 48", "multiple of 32", "32 or 64"]),
    ({"codec_strides": (4, 16, 16), "data.visibility_cell": 32}, ["visibility_cell = 32", "stride 16"]),
    ({"codec_strides": (8, 8, 8), "data.frames": 13}, ["config.data.frames = 13", "8n+1", "9 or 17"]),
    ({"codec_strides": (4, 0, 8)}, ["config.codec_strides = (4, 0, 8)", "(4, 16, 16)"]),
    ({**SINGLE, **ONLY_PIXELS, "objective.temporal_luminance.every": 4}, ["is the only term", "every = 4"]),
])
def test_what_cannot_work_is_named(overrides, words):
    with pytest.raises(config.ConfigError) as error:
        config.load(TINY, overrides)
    for word in words:
        assert word in str(error.value)


def test_heads_have_to_divide_only_where_nothing_else_is_allowed():
    assert config.load(A14B, {"mesh.seq": 16}).model.sequence == "auto"
    with pytest.raises(config.ConfigError, match="sequence = 'heads', but config.model.heads = 40 does .*seq = 16"):
        config.load(A14B, {"mesh.seq": 16, "model.sequence": "heads"})
    with pytest.raises(config.ConfigError, match="config.model: sequence 'tokens' is not one of"):
        config.load(A14B, {"model.sequence": "tokens"})


@pytest.mark.parametrize("expert", ["both", "high"])
def test_a_single_expert_sees_every_timestep_and_pixels_are_for_it_too(expert):
    overrides = {**SINGLE, **ONLY_PIXELS, "objective.temporal_luminance.every": 1, "train.expert": expert}
    experiment = config.load(TINY, overrides)
    assert experiment.train.experts == ("high",) and experiment.train.timesteps("high") == (0.0, 1000.0)
    assert experiment.objective.of((0.0, 1000.0)).active == ("temporal_luminance",)


def test_a_first_frame_needs_tokens_of_its_own():
    experiment = config.load(TINY, {"train.first_frame": 0.5})
    longer = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, patch=(5, 2, 2)))
    with pytest.raises(config.ConfigError, match=r"config.train.first_frame = 0.5, but .*config.model.patch\[0\] = 5"):
        config.validate(longer)


def test_a_shadow_head_has_the_cells_of_its_codec():
    overrides = {"objective.shadow.weight": 0.1, "codec_strides": (4, 16, 16)}
    for strides, cells in (((4, 8, 8), 2), ((4, 16, 16), 4)):
        experiment = config.load(TINY, overrides | {"codec_strides": strides})
        assert experiment.shadow_head(WanDiT(experiment.model)).cells == cells


def test_a_codec_that_the_config_was_not_checked_for_is_refused():
    experiment, wide = config.load(TINY), dataclasses.replace(WAN22, base_dim=8, decoder_base_dim=16)
    config.check_codec(experiment, WanVAE(VAEConfig(base_dim=8)))
    with pytest.raises(config.ConfigError) as error:
        config.check_codec(experiment, WanVAE(wide))
    for word in ("config.codec_strides = (4, 8, 8)", "(4, 16, 16)", "config.model.out_channels = 16", "48 channels"):
        assert word in str(error.value)


def test_several_problems_come_in_one_error():
    with pytest.raises(config.ConfigError) as error:
        config.load(TINY, {"data.frames": 16, "data.width": 50})
    assert "config.data.frames" in str(error.value) and "config.data.width" in str(error.value)


def test_a_file_that_is_no_config_is_named(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    for path, word in ((tmp_path / "none.py", "does not exist"), (tmp_path / "empty.py", "get_config()")):
        with pytest.raises(config.ConfigError, match=path.name) as error:
            config.load(path)
        assert word in str(error.value)


def test_mesh_sizes_fill_the_devices():
    assert config.MeshConfig(data=2, fsdp=-1).sizes(8) == {"data": 2, "fsdp": 4, "seq": 1, "tensor": 1}
    with pytest.raises(config.ConfigError, match="multiple of 3"):
        config.MeshConfig(data=3, fsdp=-1).sizes(8)
    with pytest.raises(config.ConfigError, match="uses 2 devices, but there are 8"):
        config.MeshConfig(data=2, fsdp=1).sizes(8)


def test_differences_name_the_fields():
    a, b = (config.to_dict(config.load(TINY, {"model.width": w})) for w in (64, 128))
    assert config.differences(a, b) == {"config.model.width": (64, 128)}


def test_a_config_of_an_older_version_is_completed_with_the_defaults_of_what_is_new():
    new = config.to_dict(config.load(TINY))
    old = config.to_dict(config.load(TINY))
    for term in ("light_consistency", "temporal_luminance", "shadow", "change_weight"):
        del old["objective"][term]
    del old["data"]["visibility_cell"], old["codec_strides"], old["train"]["first_frame"]
    assert config.from_dict(old) == config.from_dict(new)
    assert config.differences(config.completed(old), new) == {}
    new["objective"]["shadow"]["weight"] = 0.5
    assert config.differences(config.completed(old), new) == {"config.objective.shadow.weight": (0.0, 0.5)}
