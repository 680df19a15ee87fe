"""Repository names in place of paths, against a hub on this machine."""

import collections
import errno
import os
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.hub_server import SHA, Hub
from wanjax import hub_names

DIFFUSERS, OFFICIAL, SINGLE = "wan/t2v-Diffusers", "wan/t2v", "wan/ti2v"
SHARDS = "{}/{}-00001-of-00002.safetensors {}/{}-00002-of-00002.safetensors {}/{}.safetensors.index.json"


def shards(folder, stem="diffusion_pytorch_model"):
    return SHARDS.format(*(folder, stem) * 3).split() + [f"{folder}/config.json"]


READ = {  # the files that are read of each kind of release
    DIFFUSERS: ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json",
                "tokenizer/spiece.model", "tokenizer/special_tokens_map.json", "vae/config.json",
                "vae/diffusion_pytorch_model.safetensors", *shards("transformer"), *shards("transformer_2"),
                *shards("text_encoder", "model")],
    OFFICIAL: ["Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/spiece.model",
               "google/umt5-xxl/tokenizer.json", *shards("high_noise_model"), *shards("low_noise_model")],
    SINGLE: ["config.json", "Wan2.2_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/spiece.model",
             "diffusion_pytorch_model.safetensors.index.json",
             "diffusion_pytorch_model-00001-of-00002.safetensors",
             "diffusion_pytorch_model-00002-of-00002.safetensors"],
}  # fmt: skip
LEFT = ["README.md", ".gitattributes", "assets/logo.png", "examples/i2v_input.JPG", "transformer/pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.bin", "text_encoder/model.pth",
        "transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "image_encoder/model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.fp16.json", "text_encoder/model.fp16.safetensors",
        "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth", "xlm-roberta-large/tokenizer.json",
        "comfy/wan_fp8.safetensors", "comfy/config.json"]  # fmt: skip


def content(name):
    return name.encode() * 3


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with three releases, an empty cache, and no token; ``HF_HUB_OFFLINE`` is off whatever the shell says."""
    served = {name: {file: content(file) for file in (*files, *LEFT)} for name, files in READ.items()}
    served["some/thing"] = {"config.json": b"{}", "model.safetensors": b"x"}
    with Hub(served).running() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            running.url + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.chdir(tmp_path)
        yield running


def files_of(root):
    return sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())


@pytest.mark.parametrize("name", READ)
def test_a_release_is_fetched_once_and_nothing_in_it_that_is_not_read(hub, name, capfd):
    root = hub_names.resolve(name)
    assert "dry" not in capfd.readouterr().err  # asking for sizes is not the user's business
    assert files_of(root) == sorted(READ[name]) == sorted(hub.fetched)
    assert all((root / file).read_bytes() == content(file) for file in READ[name])
    hub.fetched.clear()
    assert hub_names.resolve(name) == root and not hub.fetched


@pytest.mark.parametrize(("name", "parts", "expected"), [
    (DIFFUSERS, ["vae", "tokenizer"], ["model_index.json", "tokenizer/special_tokens_map.json",
                                       "tokenizer/spiece.model", "tokenizer/tokenizer.json", "vae/config.json",
                                       "vae/diffusion_pytorch_model.safetensors"]),
    (DIFFUSERS, ["transformer_2"], ["model_index.json", *sorted(shards("transformer_2"))]),
    (OFFICIAL, ["transformer"], sorted(shards("high_noise_model"))),
    (OFFICIAL, ["text_encoder", "tokenizer"], ["google/umt5-xxl/spiece.model", "google/umt5-xxl/tokenizer.json",
                                               "models_t5_umt5-xxl-enc-bf16.pth"]),
])  # fmt: skip
def test_parts_are_asked_for_by_diffusers_names_in_either_layout(hub, name, parts, expected):
    assert files_of(hub_names.resolve(name, parts=parts)) == expected


@pytest.mark.parametrize(("inside", "expected"), [
    ("transformer", shards("transformer")), ("low_noise_model", None), ("tokenizer", None),
    ("comfy/wan_fp8.safetensors", ["comfy/wan_fp8.safetensors", "comfy/config.json"]),
])  # fmt: skip
def test_one_network_or_file_of_a_repository(hub, inside, expected):
    name = OFFICIAL if inside == "low_noise_model" else DIFFUSERS
    place = hub_names.resolve(f"{name}/{inside}")
    assert place.exists() and place.as_posix().endswith(f"{SHA}/{inside}")
    assert sorted(hub.fetched) == sorted(expected or [file for file in READ[name] if file.startswith(f"{inside}/")])
    with pytest.raises(ValueError, match=f"{inside} is one part of {name}; the whole is needed: give {name}$"):
        hub_names.resolve(f"{name}/{inside}", parts=hub_names.PARTS)


def test_where_one_network_is_opened_a_root_of_several_is_not_fetched(hub, tmp_path):
    for name, networks in ((DIFFUSERS, f"{DIFFUSERS}/transformer$"),
                           (OFFICIAL, f"{OFFICIAL}/high_noise_model or {OFFICIAL}/low_noise_model$")):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name} is the root of a pipeline, not .* name one, such as {networks}"):
            hub_names.resolve_network(name)
    assert not hub.fetched
    assert files_of(hub_names.resolve_network(SINGLE)) == [file for file in sorted(READ[SINGLE]) if "/" not in file
                                                           and not file.endswith(".pth")]  # fmt: skip
    assert files_of(hub_names.resolve_network(f"{OFFICIAL}/low_noise_model")) == sorted(
        file.removeprefix("low_noise_model/") for file in shards("low_noise_model"))  # fmt: skip
    assert hub_names.resolve_network(tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError, match="'./x/y' does not exist"):
        hub_names.resolve_network("./x/y")


@pytest.mark.parametrize("revision", ["main", "v1", SHA])
def test_a_revision_may_be_named(hub, revision):
    assert hub_names.resolve(f"{OFFICIAL}@{revision}", parts=["vae"]).name == SHA
    assert hub_names.resolve(f"{OFFICIAL}/Wan2.1_VAE.pth@{revision}").is_file()


def test_what_exists_is_never_looked_up(hub, tmp_path):
    for path in (tmp_path / DIFFUSERS, tmp_path / "run@v1"):
        path.mkdir(parents=True)
        assert hub_names.resolve(path) == path
    assert files_of(hub_names.resolve(DIFFUSERS)) == []  # a path relative to the working directory
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("path", ["absent", "./wan/t2v", "/wan/t2v", "wan/t2v/", "runs/demo/high", "~/wan", "a/b/c/d",
                                  "wan/t2v@", "wan--x/t2v", "-wan/t2v", "wan/../t2v", "", "wan\\t2v"])  # fmt: skip
def test_what_is_not_shaped_like_a_name_is_a_missing_file(hub, path):
    hub.refused.append(("", 500, "asked"))
    if path == "":
        assert str(hub_names.resolve(path)) == "."
        return
    with pytest.raises(FileNotFoundError, match="does not exist"):
        hub_names.resolve(path)


def test_an_unknown_repository_revision_or_file_is_named(hub):
    with pytest.raises(FileNotFoundError, match=r"runs/demo is neither a path here nor a repository at http.*spelling"):
        hub_names.resolve("runs/demo")
    with pytest.raises(FileNotFoundError, match=f"{OFFICIAL} at revision v7: the repository has no such branch"):
        hub_names.resolve(f"{OFFICIAL}@v7")
    with pytest.raises(ValueError, match=f"a/b.safetensors of {OFFICIAL}: the repository has no such weights"):
        hub_names.resolve(f"{OFFICIAL}/a/b.safetensors")
    with pytest.raises(ValueError, match="some/thing: the repository has no such weights in a layout that is read"):
        hub_names.resolve("some/thing")
    with pytest.raises(ValueError, match=r"parts \['clip'\] are not among transformer, transformer_2"):
        hub_names.resolve(OFFICIAL, parts=["clip"])


@pytest.mark.parametrize("where", ["api/", "resolve/"])  # the hub lists a gated repository and keeps its files
def test_a_gated_repository_says_where_to_accept_its_terms(hub, where):
    hub.refused.append((where, 403, "GatedRepo"))
    with pytest.raises(PermissionError, match=f"accept terms: do so on {hub.url}/{OFFICIAL}, then log in with `hf"):
        hub_names.resolve(OFFICIAL)


def test_a_hub_that_fails_is_said_to(hub):
    hub.refused.append(("api/", 500, ""))
    with pytest.raises(ConnectionError, match=f"{OFFICIAL} cannot be fetched from {hub.url} .*500.*check the network"):
        hub_names.resolve(OFFICIAL)


def test_without_a_network_the_cache_is_used_and_what_is_not_in_it_is_named(hub, monkeypatch):
    root = hub_names.resolve(OFFICIAL, parts=["vae"])
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert hub_names.resolve(OFFICIAL, parts=["vae"]) == root
    for name in (DIFFUSERS, OFFICIAL):  # the second is there in part
        with pytest.raises(ConnectionError, match=f"{name} cannot be fetched from http://127.0.0.1:9 .*check the netw"):
            hub_names.resolve(name)


def test_offline_the_cache_is_used_and_nothing_is_asked(hub, monkeypatch):
    root = hub_names.resolve(OFFICIAL, parts=["vae"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.refused.append(("", 500, "asked"))
    assert hub_names.resolve(OFFICIAL, parts=["vae"]) == root
    for name in (DIFFUSERS, OFFICIAL, f"{OFFICIAL}@v1"):
        with pytest.raises(FileNotFoundError, match=r"is no path here, and .* HF_HUB_OFFLINE is set: unset it"):
            hub_names.resolve(name)


def test_a_cache_that_another_tool_made_is_read(hub, tmp_path, monkeypatch):
    """refs, snapshots and blobs as huggingface_hub documents them, without its listing of what there is."""
    repository = tmp_path / "cache/models--wan--t2v"
    for folder in ("refs", "blobs", f"snapshots/{SHA}"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs/main").write_text(SHA)
    (repository / "blobs/abc").write_bytes(b"codec")
    file = repository / f"snapshots/{SHA}/Wan2.1_VAE.pth"
    file.symlink_to("../../blobs/abc")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_names.resolve(OFFICIAL) == file.parent
    assert hub_names.resolve(f"{OFFICIAL}/Wan2.1_VAE.pth").read_bytes() == b"codec"
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set"):
        hub_names.resolve(f"{OFFICIAL}/high_noise_model")


def test_a_disk_without_room_is_told_before_anything_is_fetched(hub, monkeypatch):
    whole = sum(len(content(file)) for file in READ[OFFICIAL])
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, whole - 1))
    with pytest.raises(OSError, match=f"{OFFICIAL} does not fit into .* GB are to be fetched.*HF_HOME") as caught:
        hub_names.resolve(OFFICIAL)
    assert caught.value.errno == errno.ENOSPC and not hub.fetched
    hub_names.resolve(OFFICIAL, parts=["vae"])
    hub_names.resolve(OFFICIAL)  # what is there already needs no room


def test_a_disk_that_fills_up_is_told(hub, monkeypatch):
    def full(**asked):
        if asked.get("dry_run"):
            return original(**asked)
        raise OSError(errno.ENOSPC, "No space left on device")

    original = huggingface_hub.snapshot_download
    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(OSError, match="does not fit into .*No space left.*what was fetched is kept"):
        hub_names.resolve(OFFICIAL)


def test_the_environment_of_huggingface_hub_is_honoured(hub, tmp_path):
    """In a process of its own, as a user sets it."""
    program = f"from wanjax import hub_names; print(hub_names.resolve({OFFICIAL!r}, parts=['vae']))"
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    settings |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    root = os.path.dirname(os.path.dirname(hub_names.__file__))

    def run(**more):
        return subprocess.run([sys.executable, "-c", program], cwd=root, env=settings | more, text=True,
                              capture_output=True, timeout=120)  # fmt: skip

    offline = run(HF_HUB_OFFLINE="1")
    assert offline.returncode and "HF_HUB_OFFLINE is set" in offline.stderr and not hub.fetched
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = run(**more)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(tmp_path / f"home/hub/models--wan--t2v/snapshots/{SHA}")
    assert hub.fetched == ["Wan2.1_VAE.pth"]
