"""Names of repositories on the Hugging Face Hub in place of paths: ``owner/name`` is fetched once and cached.

Downloads go through huggingface_hub into its own cache; ``HF_HOME``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE``, ``HF_TOKEN``
and ``HF_ENDPOINT`` mean what they mean there. Only files that are read are fetched: no second copy of the weights in
another type or format, no examples.
"""

from __future__ import annotations

import errno
import os
import pathlib
import re
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

from wanjax.weight_files import DIFFUSERS_STEM, INDEX_SUFFIX, SUFFIX, SUFFIXES, TRANSFORMERS_STEM

_PathLike = str | os.PathLike[str]

# of a folder of weights: one file or shards under the one name that loaders take, and what describes them
_STEMS = {
    "transformer": DIFFUSERS_STEM, "transformer_2": DIFFUSERS_STEM, "vae": DIFFUSERS_STEM,
    "text_encoder": TRANSFORMERS_STEM, "high_noise_model": DIFFUSERS_STEM, "low_noise_model": DIFFUSERS_STEM,
}  # fmt: skip
_WHOLE_FOLDERS = ("tokenizer", "scheduler", "google/umt5-xxl")
# where each part of a pipeline lies in Wan's own releases
_OFFICIAL_FOLDERS = {
    "transformer": "high_noise_model", "transformer_2": "low_noise_model", "tokenizer": "google/umt5-xxl"
}  # fmt: skip
_OFFICIAL_FILES = {
    "transformer": (DIFFUSERS_STEM + SUFFIX, f"{DIFFUSERS_STEM}-*-of-*{SUFFIX}", DIFFUSERS_STEM + INDEX_SUFFIX),
    "vae": (f"Wan2.*_VAE{SUFFIX}", "Wan2.*_VAE.pth"),
    "text_encoder": (f"models_t5_*{SUFFIX}", "models_t5_*.pth"),
}
_ALWAYS = ("model_index.json", "config.json")
_MARKS = tuple(f"{folder}/config.json" for folder in ("transformer", "high_noise_model", "low_noise_model"))
PARTS = ("transformer", "transformer_2", "vae", "text_encoder", "tokenizer", "scheduler")

_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<inside>[\w./-]+))?(?:@(?P<revision>[\w./-]+))?", re.ASCII)


class _Name(NamedTuple):
    repository: str
    inside: str | None  # a part's folder, or one file of weights
    revision: str | None

    def __str__(self) -> str:
        return self.repository + (f" at revision {self.revision}" if self.revision else "")


def resolve(name_or_path: _PathLike, *, parts: Sequence[str] | None = None) -> pathlib.Path:
    """The place on disk of a checkpoint that is given by its path or by its name on the Hub.

    Args:
        name_or_path: a path, which is returned as it is where it exists; or ``owner/name``, the root of a released
            pipeline in the diffusers or in Wan's own layout; or ``owner/name/folder``, one of its networks
            (``transformer``, ``high_noise_model``, ``vae``, ...); or ``owner/name/some/file.safetensors``. A branch,
            tag or commit may follow: ``owner/name@revision``.
        parts: of a pipeline's root, what is needed among ``PARTS``, by diffusers' names whatever the layout; None is
            all of them.

    Raises:
        FileNotFoundError: neither there nor shaped like a name; no such repository, revision or file; or not in the
            cache while ``HF_HUB_OFFLINE`` is set.
        PermissionError: a repository whose terms have to be accepted first.
        ConnectionError: not in the cache, and the Hub cannot be reached or does not answer as it should.
        ValueError: unknown parts, or a repository in none of the layouts.
        OSError: the disk has no room; checked before anything is fetched.
    """
    if unknown := set(parts or ()) - set(PARTS):
        raise ValueError(f"parts {sorted(unknown)} are not among {', '.join(PARTS)}")
    found = _path_or_name(name_or_path)
    if isinstance(found, pathlib.Path):
        return found
    if found.inside and parts is not None:
        raise ValueError(f"{found.inside} is one part of {found}; the whole is needed: give {found.repository}")
    return _fetched(found, _inside(found.inside) if found.inside else _whole(PARTS if parts is None else parts))


def resolve_network(name_or_path: _PathLike) -> pathlib.Path:
    """As :func:`resolve`, for a caller that opens one network: a pipeline's root of several is not fetched.

    Raises:
        ValueError: the repository is such a root; the message says how one network of it is named.
    """
    found = _path_or_name(name_or_path)
    if isinstance(found, pathlib.Path):
        return found
    if found.inside:
        return _fetched(found, _inside(found.inside))
    return _fetched(found, [*_ALWAYS, *_OFFICIAL_FILES["transformer"], *_MARKS], one_network=True)


def _path_or_name(name_or_path: _PathLike) -> pathlib.Path | _Name:
    path = pathlib.Path(name_or_path)
    if path.exists():
        return path
    name = _parsed(os.fspath(name_or_path))
    if name is None:
        raise FileNotFoundError(f"{os.fspath(name_or_path)!r} does not exist")
    return name


def _parsed(text: str) -> _Name | None:
    """The name that a text is shaped like. Inside a repository only what could be opened counts."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    found = _NAME.fullmatch(text)
    if found is None:
        return None
    name = _Name(found["repository"], found["inside"], found["revision"])
    if name.inside and name.inside not in (*_STEMS, *_WHOLE_FOLDERS) and not name.inside.endswith(SUFFIXES):
        return None
    try:
        validate_repo_id(name.repository)
    except HFValidationError:
        return None
    return name


def _inside(place: str) -> list[str]:
    """What to fetch of one network's folder or file, as ``fnmatch`` patterns."""
    if place.endswith(SUFFIXES):
        return [place, (pathlib.PurePosixPath(place).parent / "config.json").as_posix()]
    return _of_folder(place)


def _whole(parts: Sequence[str]) -> list[str]:
    """What to fetch of a pipeline's root in either layout."""
    patterns = list(_ALWAYS)
    for part in parts:
        patterns += [*_of_folder(part), *_OFFICIAL_FILES.get(part, ())]
        if part in _OFFICIAL_FOLDERS:
            patterns += _of_folder(_OFFICIAL_FOLDERS[part])
    return patterns


def _of_folder(folder: str) -> list[str]:
    if folder in _WHOLE_FOLDERS:
        return [f"{folder}/*"]
    stem = f"{folder}/{_STEMS[folder]}"
    return [f"{folder}/config.json", stem + SUFFIX, f"{stem}-*-of-*{SUFFIX}", stem + INDEX_SUFFIX]


def _fetched(name: _Name, patterns: list[str], *, one_network: bool = False) -> pathlib.Path:
    """The place in huggingface_hub's cache, complete where the Hub can be asked."""
    # takes half a second to import, and reads the environment when it is
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.utils import tqdm

    class NoBar(tqdm):  # the first run only asks
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **{**kwargs, "disable": True})

    wanted: dict[str, Any] = dict(repo_id=name.repository, revision=name.revision, allow_patterns=patterns)
    unreachable: BaseException | None = None
    try:
        if not constants.HF_HUB_OFFLINE:
            try:
                _check(name, snapshot_download(**wanted, dry_run=True, tqdm_class=NoBar), one_network)
            except errors.DryRunError as error:
                unreachable = error.__cause__
        local = constants.HF_HUB_OFFLINE or unreachable is not None
        place = pathlib.Path(snapshot_download(**wanted, local_files_only=local)) / (name.inside or "")
    except (errors.HTTPError, errors.XetDownloadError, errors.LocalEntryNotFoundError) as error:
        raise _explained(name, unreachable or error, constants) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _no_room(name, constants.HF_HUB_CACHE, str(error)) from error
    if not place.exists():  # a cache made by other tools need not list what it lacks
        absent = errors.LocalEntryNotFoundError(f"{place} is not there")
        raise _explained(name, unreachable or absent, constants) from unreachable
    return place


def _check(name: _Name, planned: Sequence[Any], one_network: bool) -> None:
    """Refuses, before anything is fetched, what could not be opened or has no room; ``planned`` is the dry run's."""
    from huggingface_hub import constants

    if one_network and (folders := [mark for mark in _MARKS if mark in {file.filename for file in planned}]):
        networks = " or ".join(f"{name.repository}/{mark.removesuffix('/config.json')}" for mark in folders)
        raise ValueError(f"{name} is the root of a pipeline, not one network: name one, such as {networks}")
    if not any(file.filename.endswith(SUFFIXES) or name.inside in _WHOLE_FOLDERS for file in planned):
        where = f"{name.inside} of {name}" if name.inside else str(name)
        raise ValueError(
            f"{where}: the repository has no such weights in a layout that is read: diffusers (model_index.json, "
            f"transformer/{DIFFUSERS_STEM}{SUFFIX} ...) or Wan's own (high_noise_model/, Wan2.1_VAE.pth ...); name one "
            f"of its files, such as {name.repository}/folder/file{SUFFIX}"
        )
    needed = sum(file.file_size or 0 for file in planned if file.will_download)
    folder = pathlib.Path(constants.HF_HUB_CACHE).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise _no_room(name, constants.HF_HUB_CACHE, f"{needed / 1e9:.1f} GB are to be fetched, {free / 1e9:.1f} free")


def _no_room(name: _Name, cache: str, why: str) -> OSError:
    return OSError(
        errno.ENOSPC,
        f"{name} does not fit into {cache} ({why}): free the disk, or set HF_HOME to a folder on another; what was "
        "fetched is kept",
    )


def _explained(name: _Name, error: BaseException, constants: Any) -> OSError:
    """One error that says what is the matter and what to do."""
    from huggingface_hub import errors

    page = f"{constants.ENDPOINT}/{name.repository}"
    match error:
        case errors.GatedRepoError():
            return PermissionError(
                f"{name} asks its users to accept terms: do so on {page}, then log in with `hf auth login` or set "
                "HF_TOKEN"
            )
        case errors.RevisionNotFoundError():
            return FileNotFoundError(f"{name}: the repository has no such branch, tag or commit: see {page}")
        case errors.RepositoryNotFoundError():
            return FileNotFoundError(
                f"{name.repository} is neither a path here nor a repository at {constants.ENDPOINT}: check the "
                "spelling; for a private one log in with `hf auth login` or set HF_TOKEN"
            )
        case _ if constants.HF_HUB_OFFLINE:
            return FileNotFoundError(
                f"{name.repository} is no path here, and {name} is not, or not completely, in {constants.HF_HUB_CACHE} "
                "while HF_HUB_OFFLINE is set: unset it, or fetch it where there is a network with `hf download "
                f"{name.repository}`"
            )
    if isinstance(error, errors.LocalEntryNotFoundError):  # says where it is not; why stands behind it
        error = error.__cause__ or error
    why = f"{type(error).__name__}: {error}".splitlines()[0]
    return ConnectionError(
        f"{name.repository} is no path here, and {name} cannot be fetched from {constants.ENDPOINT} ({why}): check "
        "the network, the proxy and HF_ENDPOINT, and try again; what was fetched is kept"
    )
