"""The published members: sizes that are known, and the config of each that can be trained says the same."""

import dataclasses
import pathlib

import jax
import pytest

from wanjax import config, partition, train
from wanjax.family import MEMBERS, WAN21_STRIDES, member_like
from wanjax.first_frame import reads_image
from wanjax.models import rows
from wanjax.models.dit import WanDiT
from wanjax.models.rows.dit import dit_rows

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = {"t2v_a14b": "Wan2.2-T2V-A14B", "i2v_a14b": "Wan2.2-I2V-A14B", "ti2v_5b": "Wan2.2-TI2V-5B",
           "t2v_14b": "Wan2.1-T2V-14B", "t2v_1_3b": "Wan2.1-T2V-1.3B"}
PRECISION = ("dtype", "param_dtype", "remat", "chunk_tokens", "grad_reduce_dtype")


@pytest.mark.parametrize("name,parameters", [
    ("Wan2.2-T2V-A14B", 14_288_491_584),
    ("Wan2.2-I2V-A14B", 14_288_901_184),
    ("Wan2.2-TI2V-5B", 4_999_787_712),
    ("Wan2.1-T2V-14B", 14_288_491_584),
    ("Wan2.1-T2V-1.3B", 1_418_996_800),
])
def test_a_transformer_has_as_many_parameters_as_published(name, parameters):
    assert MEMBERS[name].parameters == parameters


@pytest.mark.parametrize("name,tokens", [
    ("Wan2.2-T2V-A14B", 21 * 30 * 52),
    ("Wan2.2-I2V-A14B", 21 * 30 * 52),
    ("Wan2.2-TI2V-5B", 31 * 22 * 40),
    ("Wan2.1-T2V-14B", 21 * 45 * 80),
    ("Wan2.1-T2V-1.3B", 21 * 30 * 52),
])
def test_tokens_of_a_clip(name, tokens):
    assert MEMBERS[name].tokens == tokens


@pytest.mark.parametrize("name", MEMBERS)
def test_channels_and_heads_are_the_codecs_and_the_familys(name):
    member = MEMBERS[name]
    assert member.model.head_dim == 128 and member.model.patch == (1, 2, 2)
    assert member.model.out_channels == member.latent_channels == (16 if member.strides == WAN21_STRIDES else 48)
    image = WAN21_STRIDES[0] + member.latent_channels if "I2V-A14B" in name else 0  # mask, latents of the image
    assert member.model.in_channels == member.latent_channels + image


@pytest.mark.parametrize("name", MEMBERS)
def test_an_expert_has_steps_exactly_where_there_is_one(name):
    member = MEMBERS[name]
    assert tuple(expert for expert, steps in member.sample.expert_steps.items() if steps) == member.experts


@pytest.mark.parametrize("name,member", CONFIGS.items())
def test_a_config_of_a_member_is_that_member(name, member):
    experiment, published = config.load(ROOT / "configs" / f"{name}.py"), MEMBERS[member]
    own = {field: getattr(experiment.model, field) for field in PRECISION}
    assert experiment.model == dataclasses.replace(published.model, **own)
    assert experiment.sample == published.sample
    assert experiment.train.shift == published.sample.shift
    assert experiment.train.boundary == published.sample.boundary and experiment.train.experts == published.experts
    for field in ("frames", "height", "width", "fps"):
        assert getattr(experiment.data, field) == getattr(published, field), field
    assert published.strides == experiment.codec_strides
    assert reads_image(published.model) == ("I2V-A14B" in member) <= experiment.train.first_frame
    assert all(member in path for path in (experiment.codec, experiment.text.encoder, experiment.train.init_from))


def test_every_member_has_a_config_and_the_shapes_and_names_of_its_state_are_built_without_allocating():
    assert sorted(CONFIGS.values()) == sorted(MEMBERS)
    mesh = partition.make_mesh(dict.fromkeys(partition.AXES, 1), devices=jax.devices()[:1])
    for name, member in CONFIGS.items():
        experiment = config.load(ROOT / "configs" / f"{name}.py")
        model = WanDiT(experiment.model)
        state = train.state_shapes(model, train.make_optimizer(experiment.optimizer, 10, model), mesh)
        table = dit_rows(MEMBERS[member].model)
        wanted = {jax.tree_util.keystr(path): leaf.shape
                  for path, leaf in jax.tree_util.tree_leaves_with_path(rows.shapes(table, "float32"))}
        for part in (state.params, state.ema):
            found = {jax.tree_util.keystr(path): leaf.shape
                     for path, leaf in jax.tree_util.tree_leaves_with_path(part)}
            assert found == wanted
        assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == MEMBERS[member].parameters


@pytest.mark.parametrize("name", MEMBERS)
def test_a_checkpoint_finds_its_published_settings_also_at_other_widths_of_the_same_kind(name):
    member = MEMBERS[name]
    assert member_like([member.model] * len(member.experts)) is member
    small = dataclasses.replace(member.model, width=128, heads=1, layers=2, ffn=64)
    found = member_like([small] * len(member.experts))
    assert (found.model.in_channels, found.experts) == (member.model.in_channels, member.experts)
