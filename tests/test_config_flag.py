"""The flag --config: every field of an experiment can be set on the command line, and a mistake there is one line."""
import dataclasses
import pathlib
import sys

import ml_collections
import pytest
from absl import flags

from wanjax import config, config_flag

TINY = str(pathlib.Path(__file__).parents[1] / "configs/light_scenes_tiny.py")
BARE = "import ml_collections\n\ndef get_config(name=''):\n    return ml_collections.ConfigDict({'name': name})\n"


@pytest.fixture
def given(monkeypatch):
    """What a launcher makes of a command line."""
    def parsed(*arguments):
        argv, values = ["launcher", *map(str, arguments)], flags.FlagValues()
        monkeypatch.setattr(sys, "argv", argv)
        config_flag.define(values)
        flags.DEFINE_string("workdir", "runs", "", flag_values=values)
        flags.mark_flag_as_required("config", flag_values=values)
        assert config_flag.parse(argv, values) == ["launcher"]
        return config_flag.experiment(values)

    return parsed


def leaves(values, prefix=""):
    """Values that are no sections, by dotted name; lists as the tuples that they are in a config."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, tuple(value) if isinstance(value, list) else value


@pytest.fixture
def bare(tmp_path):
    path = tmp_path / "bare.py"
    path.write_text(BARE)
    return path


def test_every_field_is_set_on_the_command_line_of_a_file_that_lists_none(given, bare):
    fields = dict(leaves(config.to_dict(config.load(TINY))))
    assert len(fields) > 100
    assert given("--config", bare, *(f"--config.{name}={value}" for name, value in fields.items())) == config.load(TINY)
    assert config.load(bare, fields) == config.load(TINY)


@pytest.mark.parametrize("arguments", [
    ["--config.model.attention=blockwise"], ["--config.model.attention", "blockwise"],
    ["-config.model.attention=plain", "--config.model.attention=blockwise"],
])
def test_a_field_that_the_file_leaves_out_is_overridden(given, arguments):
    assert "attention" not in config.read(TINY).model
    experiment = given("--config", TINY, *arguments)
    assert experiment == config.load(TINY, {"model.attention": "blockwise"})
    changed = config.differences(config.to_dict(config.load(TINY)), config.to_dict(experiment))
    assert changed == {"config.model.attention": ("auto", "blockwise")}


def test_the_rest_of_a_section_that_the_file_leaves_out_has_its_defaults():
    values = config.read(TINY)
    del values["lora"], values.objective["shadow"]
    plain = config.to_dict(config.from_config_dict(values))
    for name, value in (("lora.alpha", 8.0), ("objective.shadow.weight", 0.1), ("objective.shadow.head.width", 64)):
        made = config.to_dict(config.from_config_dict(config.override(values, {name: value})))
        changed = {field: new for field, (_, new) in config.differences(plain, made).items()}
        assert changed == {f"config.{name}": value}
        assert "lora" not in values and "shadow" not in values.objective


def test_the_rest_is_that_of_the_section_not_of_its_class(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Section:
        one: int = 1
        two: int = 2

    @dataclasses.dataclass(frozen=True)
    class Whole:
        section: Section = Section(two=5)

    monkeypatch.setattr(config, "Experiment", Whole)
    made = config.override(ml_collections.ConfigDict(), {"section.one": 3})
    assert made.to_dict() == {"section": {"one": 3, "two": 5}}


def test_numbers_schedules_and_tuples_are_read_as_the_dataclasses_say(given):
    experiment = given("--config", TINY, "--config.objective.light.weight", "0.3", "--config.data.fps=8",
                       "--config.objective.velocity.weight=((0, 1), (100, 0.5))", "--config.name=7",
                       "--config.objective.light.orders=1", "--config.objective.light.pools=frame",
                       "--config.objective.light.pools=8")
    assert experiment.objective.light.weight == 0.3 and experiment.objective.velocity.weight == ((0, 1), (100, 0.5))
    assert (experiment.name, experiment.data.fps) == ("7", 8.0)
    assert (experiment.objective.light.orders, experiment.objective.light.pools) == ((1,), ("frame", 8))


def test_a_config_takes_its_argument(given, bare):
    fields = [f"--config.{name}={value}" for name, value in leaves(config.to_dict(config.load(TINY))) if name != "name"]
    assert given("--config", f"{bare}:mine", *fields).name == "mine"
    assert config.read(f"{bare}:mine").name == "mine" and config.read(bare).name == ""


@pytest.mark.parametrize(("arguments", "words"), [
    ([], ["--config is missing"]),
    (["--config.model.width=3"], ["--config.model.width", "--config FILE.py"]),
    (["--config.model.width=3", "--config", TINY], ["--config.model.width=3", "before a value for --config"]),
    (["--config", TINY, "--config", TINY, "--config.model.width=3"], ["--config is given more than once"]),
    (["--config", TINY, "--workdri=x"], ["'workdri'", "workdir"]),
    (["--config", TINY, "model.width=3"], ["unexpected arguments ['model.width=3']", "--"]),
    (["--config", TINY, "--config.model.widht=3"], ["'config.model.widht'", "did you mean 'width'"]),
    (["--config", TINY, "--config.modle.width=3"], ["'config.modle'", "did you mean 'model'"]),
    (["--config", TINY, "--config.attention=plain"], ["'config.attention'", "did you mean 'model.attention'"]),
    (["--config", TINY, "--config.mesh.xyz=3"], ["'config.mesh.xyz'", "known here: data, fsdp, seq, tensor"]),
    (["--config", TINY, "--config.data.source.x=3"], ["'config.data.source.x'", "config.data.source is no section"]),
    (["--config", TINY, "--config.model={'width': 3}"], ["--config.model is a section", "width, heads"]),
    (["--config", TINY, "--config.model.width=abc"], ["--config.model.width=abc", "expected int"]),
    (["--config", TINY, "--config.data.fps=x"], ["--config.data.fps=x", "expected float"]),
    (["--config", TINY, "--config.model.width"], ["Missing value", "--config.model.width"]),
    (["--config", TINY, "--noconfig.model.width"], ["noconfig.model.width", "config.model.width"]),
    (["--config", TINY, "--config.model.patch=(1, 2)"], ["config.model.patch = (1, 2)", "expected 3 values"]),
    (["--config", TINY, "--config.model.patch=(1, "], ["config.model.patch=(1, ", "expected tuple[int, int, int]"]),
    (["--config", TINY, "--config.lora.targets=(1,)"], ["config.lora.targets[0] = 1", "expected str"]),
    (["--config", TINY, "--config.objective.light.weight=x"], ["config.objective.light.weight = 'x'", "float | tuple"]),
    (["--config", TINY, "--config.data.frames=10"], ["config.data.frames = 10", "9 or 13"]),
    (["--config", TINY + ":x"], [TINY, "get_config()", "FILE.py:x calls get_config('x')"]),
    (["--config", "no.py"], ["'no.py' does not exist", "configs/light_scenes_tiny.py"]),
    (["--config", "configs"], ["'configs' is a folder"]),
    (["--config", __file__], ["test_config_flag.py", "defines no get_config()"]),
    (["--config", "pyproject.toml"], ["'pyproject.toml'", "not a Python file"]),
])
def test_a_mistake_is_one_line_that_says_what_to_do(given, monkeypatch, arguments, words):
    monkeypatch.chdir(pathlib.Path(TINY).parents[1])
    with pytest.raises(config.ConfigError) as error:
        given(*arguments)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_file_that_python_cannot_read_is_named(tmp_path):
    for text, words in (("def get_config(:", "invalid syntax"), ("import not_there", "No module named 'not_there'")):
        (tmp_path / "broken.py").write_text(text)
        with pytest.raises(config.ConfigError, match=rf"broken.py' cannot be imported: .*{words}"):
            config.read(tmp_path / "broken.py")
