"""The TFDS data set `light_scenes`: ArrayRecord files, written and read without TensorFlow."""

import fcntl
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.light_scenes.captions import captions
from data_pipelines.light_scenes.clip import Clip, ClipSpec, render_clip
from data_pipelines.light_scenes.parameters import SPLITS, ClipSize
from data_pipelines.light_scenes.splits import GROUP, plan


@dataclass(frozen=True)
class LightScenesConfig:
    """Size and seed of the data set. Every field is part of the name of the folder it is written to.

    ``train``, ``validation`` and ``test`` are numbers of clips, multiples of 8; the other fields are
    ``ClipSize``'s.
    """

    frames: int = 17
    height: int = 64
    width: int = 64
    fps: float = 8.0
    train: int = 1200
    validation: int = 48
    test: int = 96
    seed: int = 0
    supersample: int = 2

    def __post_init__(self) -> None:
        for split in SPLITS:
            clips = getattr(self, split)
            if clips < GROUP:
                raise ValueError(f"LightScenesConfig.{split} = {clips}: expected at least {GROUP} clips")
            plan(split, clips, self.seed)
        self.size()

    def size(self) -> ClipSize:
        return ClipSize(self.frames, self.height, self.width, float(self.fps), self.supersample)

    @property
    def name(self) -> str:
        splits = "_".join(str(getattr(self, split)) for split in SPLITS)
        return (
            f"{self.height}x{self.width}x{self.frames}_{self.fps:g}fps_{splits}_seed{self.seed}"
            f"_ss{self.supersample}"
        )


def features(size: ClipSize) -> tfds.features.FeaturesDict:
    """The features of one clip, described in docs/data.md."""
    t, h, w = size.frames, size.height, size.width

    def packed(shape: tuple[int, ...], dtype: type) -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="zlib")

    def small(shape: tuple[int, ...]) -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=shape, dtype=np.float32)

    return tfds.features.FeaturesDict(
        {
            "video": packed((t, h, w, 3), np.uint8),
            "caption_en": tfds.features.Text(),
            "caption_zh": tfds.features.Text(),
            "family": tfds.features.Text(),
            "scene_id": tfds.features.Text(),
            "fps": tfds.features.Scalar(np.float32),
            "exposure_change": tfds.features.Scalar(np.int32),
            "sweep": tfds.features.Scalar(np.int32),
            "pan": tfds.features.Scalar(np.int32),
            "exposure_slope": tfds.features.Scalar(np.float32),
            "cct_slope": tfds.features.Scalar(np.float32),
            "sweep_rate": tfds.features.Scalar(np.float32),
            "log_luminance": small((t,)),
            "cct": small((t,)),
            "light_cct": small((t,)),
            "light_direction": small((t, 3)),
            "visibility": packed((t, h, w), np.uint8),
            "flow": packed((t - 1, h, w, 2), np.float16),
        }
    )


def example_of(clip: Clip, fps: float) -> dict[str, Any]:
    """A clip as the features of ``features``."""
    texts = captions(clip.spec)
    return {
        "video": clip.video,
        "caption_en": texts["en"],
        "caption_zh": texts["zh"],
        "family": clip.spec.family,
        "scene_id": clip.spec.scene_id,
        "fps": np.float32(fps),
        "exposure_change": np.int32(clip.spec.exposure_change),
        "sweep": np.int32(clip.spec.sweep),
        "pan": np.int32(clip.spec.pan),
        "exposure_slope": np.float32(clip.exposure_slope),
        "cct_slope": np.float32(clip.cct_slope),
        "sweep_rate": np.float32(clip.sweep_rate),
        "log_luminance": clip.log_luminance,
        "cct": clip.cct,
        "light_cct": clip.light_cct,
        "light_direction": clip.light_direction,
        "visibility": np.round(clip.visibility * 255).astype(np.uint8),
        "flow": clip.flow.astype(np.float16),
    }


class LightScenes(tfds.core.GeneratorBasedBuilder):
    """Rendered clips with exact light; build it through ``prepare``."""

    name = "light_scenes"
    # Raised whenever the same config would give other bytes.
    VERSION = tfds.core.Version("1.0.0")
    # TFDS looks for checksums of downloads beside the code, by way of a package it does not require on
    # Python >= 3.9 (importlib_resources). Nothing is downloaded here.
    code_path = None

    def __init__(self, *, scenes: LightScenesConfig | None = None, **kwargs: Any) -> None:
        self.scenes = scenes or LightScenesConfig()
        kwargs.setdefault("config", tfds.core.BuilderConfig(name=self.scenes.name))
        kwargs.setdefault("file_format", "array_record")
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        # Without shuffling the order on disk is that of `plan`, so an index names a clip.
        return tfds.core.DatasetInfo(
            builder=self,
            description="Rendered clips whose light, motion and captions are known exactly.",
            features=features(self.scenes.size()),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        specs: list[ClipSpec] = plan(split, getattr(self.scenes, split), self.scenes.seed)
        size = self.scenes.size()
        for index, spec in enumerate(specs):
            yield index, example_of(render_clip(spec, size), size.fps)


def prepare(data_dir: str | Path, *, config: LightScenesConfig | None = None) -> LightScenes:
    """Writes the data set under ``data_dir`` unless it is there, and returns its builder.

    A run that was cut off leaves nothing that is taken for whole: the next one clears it and starts over. A
    second run on the same ``data_dir`` waits for the first.
    """
    root = Path(data_dir).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    builder = LightScenes(scenes=config, data_dir=str(root))
    with open(root / "light_scenes.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if builder.is_prepared():
            print(f"light_scenes: {builder.data_path} is there")
            return builder
        target = Path(builder.data_path)
        for leftover in target.parent.glob(f"incomplete.*_{target.name}"):
            shutil.rmtree(leftover)
        counts = ", ".join(f"{split} {getattr(builder.scenes, split)}" for split in SPLITS)
        print(f"light_scenes: rendering {counts} clips into {target}")
        builder.download_and_prepare()
    return builder


def open_split(data_dir: str | Path, split: str, *, config: LightScenesConfig | None = None) -> Any:
    """A random-access source of one split: ``source[i]`` is a dict of numpy arrays.

    Raises FileNotFoundError if the data set has not been prepared, ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    builder = LightScenes(scenes=config, data_dir=str(Path(data_dir).expanduser()))
    if not builder.is_prepared():
        raise FileNotFoundError(
            f"light_scenes is not at {builder.data_path}: run `python -m data_pipelines.light_scenes "
            f"--data_dir {data_dir}` with the same sizes, or call data_pipelines.light_scenes.prepare"
        )
    return builder.as_data_source(split)
