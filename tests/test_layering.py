"""What each room may not know, read from the imports; see CONTRIBUTING.md."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
ROOMS = ("wanjax", "experiments", "data_pipelines", "configs")
TRAINING = {"wanjax.train", "wanjax.optim", "wanjax.objectives", "wanjax.checkpoint", "wanjax.codec_training",
            "wanjax.warm_start", "wanjax.run_log", "wanjax.workdir", "wanjax.train_config", "wanjax.throughput",
            "wanjax.input_watch", "wanjax.profiler_window", "optax", "experiments"}
FILES = {"os", "io", "pathlib", "json", "tempfile", "shutil", "safetensors", "huggingface_hub", "h5py", "orbax", "av",
         "wanjax.hub", "wanjax.hub_layouts", "wanjax.hub_names", "wanjax.hub_networks", "wanjax.hub_opening",
         "wanjax.hub_orbax", "wanjax.hub_readers", "wanjax.hub_writing", "wanjax.hub_float8", "wanjax.manifest",
         "wanjax.torch_files", "wanjax.pth_writing", "wanjax.weight_files", "wanjax.file_digest",
         "wanjax.prompt_embeddings", "wanjax.video", "wanjax.codec", "wanjax.latent_cache"}
NETWORKS = {"flax", "wanjax.models", "wanjax.codec", "wanjax.text", "wanjax.prompt_embeddings", "wanjax.generate"}
MESHES = {"jax.sharding", "jax.experimental.mesh_utils", "wanjax.partition"}
OURS = set(ROOMS)

# room: what it may not import, directly
MAY_NOT_KNOW = {
    "wanjax/models": FILES | TRAINING | {"ml_collections", "wanjax.config", "wanjax.data", "wanjax.light"},
    "wanjax/partition.py": OURS | {"flax"},
    "wanjax/light": NETWORKS | MESHES | TRAINING | {"ml_collections", "wanjax.hub", "wanjax.config"},
    "wanjax/train.py": {"ml_collections", "wanjax.config", "wanjax.hub", "wanjax.weight_files", "wanjax.latent_cache",
                        "wanjax.video", "safetensors", "huggingface_hub", "h5py", "json", "orbax", "av"},
    **{f"wanjax/{hub}.py": TRAINING | {"ml_collections", "wanjax.config", "wanjax.data", "wanjax.latent_cache", "orbax"}
       for hub in ("hub", "hub_networks", "hub_opening", "hub_writing", "manifest")},
    "wanjax/hub_orbax.py": TRAINING | {"ml_collections", "wanjax.config", "wanjax.data", "wanjax.latent_cache"},
    "wanjax/data.py": TRAINING | NETWORKS | {"ml_collections", "wanjax.config", "tensorflow_datasets"},
    "wanjax/latent_cache.py": TRAINING | NETWORKS | {"ml_collections", "wanjax.config", "tensorflow_datasets"},
    "wanjax/solvers.py": OURS - {"wanjax"} | NETWORKS | MESHES | TRAINING,
    "data_pipelines": TRAINING | {"orbax"},
    "data_pipelines/light_scenes": TRAINING | NETWORKS | MESHES,
    "configs": OURS - {"configs"},  # one may build on another
}
WRITES_WITH_TORCH = "wanjax/pth_writing.py"
FOREIGN_KEY = re.compile(r"condition_embedder|scale_shift_table|(self|cross)_attn|attn[12]\b|ffn\.(net|\d)"
                         r"|SelfAttention|EncDecAttention|DenseReluDense|(time|text|patch)_embedding\.|mid_block|up_blocks|down_blocks")


def python_files(*rooms):
    """Every module of the rooms, as paths relative to the repository."""
    found = []
    for room in rooms:
        path = ROOT / room
        found += [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))
    return [path.relative_to(ROOT) for path in found]


def imports(path):
    """Dotted names that a module imports, wherever in the file; ``from a import b`` gives ``a`` and ``a.b``."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.with_suffix("").parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def within(name, banned):
    return name == banned or name.startswith(f"{banned}.")


@pytest.mark.parametrize("room", MAY_NOT_KNOW)
def test_a_room_does_not_know_what_is_not_its_business(room):
    files = python_files(room)
    assert files, f"{room} has no modules: has it been renamed?"
    broken = [f"{path} imports {name}" for path in files for name in sorted(imports(path))
              for banned in MAY_NOT_KNOW[room] if within(name, banned)]
    assert not broken, "\n".join(broken)


def test_only_config_and_its_flag_know_ml_collections():
    knowing = [str(path) for path in python_files("wanjax", "experiments", "data_pipelines")
               if any(within(name, "ml_collections") for name in imports(path))]
    assert knowing == ["wanjax/config.py", "wanjax/config_flag.py"]


def test_the_library_does_not_know_what_is_built_on_it():
    broken = [f"{path} imports {name}" for path in python_files("wanjax") for name in sorted(imports(path))
              for room in ("experiments", "data_pipelines", "configs", "tests", "benchmarks") if within(name, room)]
    assert not broken, "\n".join(broken)


def test_neither_torch_nor_tensorflow_is_imported():
    """But by the one file that writes with torch.save, which no other library does, and there when it is called."""
    foreign = ("torch", "torchvision", "tensorflow", "diffusers", "keras")
    found = [(str(path), name) for path in python_files(*ROOMS) for name in sorted(imports(path))
             for banned in foreign if within(name, banned)]
    assert found == [(WRITES_WITH_TORCH, "torch")]
    at_import = [alias.name for node in ast.parse((ROOT / WRITES_WITH_TORCH).read_text()).body
                 if isinstance(node, ast.Import) for alias in node.names]
    assert "torch" not in at_import


def test_foreign_keys_are_known_to_the_rows_alone():
    broken = []
    for path in python_files("wanjax"):
        if path.parts[:3] == ("wanjax", "models", "rows") or path.parts[1].startswith(("hub", "weight_files")):
            continue
        tree = ast.parse((ROOT / path).read_text())
        documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        broken += [f"{path}:{node.lineno}: {node.value!r}" for node in ast.walk(tree)
                   if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
                   and FOREIGN_KEY.search(node.value)]
    assert not broken, "\n".join(broken)


def test_every_file_is_about_one_thing():
    names = ("utils", "util", "common", "helpers", "misc")
    grab_bags = [str(path) for path in python_files(*ROOMS) if path.stem in names]
    assert not grab_bags
    long = {str(path): lines for path in python_files(*ROOMS)
            if (lines := len((ROOT / path).read_text().splitlines())) > 450}
    assert not long, f"split these: {long}"


def test_every_module_says_what_it_is():
    silent = [str(path) for path in python_files(*ROOMS)
              if (ROOT / path).read_text().strip() and not ast.get_docstring(ast.parse((ROOT / path).read_text()))]
    assert not silent


def test_nothing_catches_everything():
    broken = [f"{path}:{node.lineno}" for path in python_files(*ROOMS)
              for node in ast.walk(ast.parse((ROOT / path).read_text()))
              if isinstance(node, ast.ExceptHandler)
              and (node.type is None or getattr(node.type, "id", "") in ("Exception", "BaseException"))]
    assert not broken, "name the errors that are expected: " + ", ".join(broken)
