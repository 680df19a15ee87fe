"""The TFDS data set `light_scenes`: ArrayRecord files, written and read without TensorFlow."""

import fcntl
import functools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.light_scenes.captions import captions
from data_pipelines.light_scenes.clip import Clip, ClipSpec, render_clip
from data_pipelines.light_scenes.families import ALL, FAMILIES
from data_pipelines.light_scenes.parameters import SPLITS, ClipSize
from data_pipelines.light_scenes.passes import Passes
from data_pipelines.light_scenes.splits import balanced, group_size, plan
from data_pipelines.light_scenes.trace import SKY_DEPTH

PASSES = ("basic", "all")


@dataclass(frozen=True)
class LightScenesConfig:
    """Size, content and seed of the data set. Every field is part of the name of the folder it is written to.

    ``train``, ``validation`` and ``test`` are numbers of clips, multiples of ``group_size(families)`` (8 by default);
    ``families`` are of ``families.ALL``; ``passes`` ``"all"`` stores every pass (some 8 times the bytes); the other
    fields are ``ClipSize``'s.
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
    families: tuple[str, ...] = FAMILIES
    passes: str = "basic"

    def __post_init__(self) -> None:
        object.__setattr__(self, "families", tuple(self.families))
        group = group_size(self.families)
        if self.passes not in PASSES:
            raise ValueError(f"LightScenesConfig.passes = {self.passes!r}: expected one of {', '.join(PASSES)}")
        for split in SPLITS:
            clips = getattr(self, split)
            if clips < group:
                raise ValueError(f"LightScenesConfig.{split} = {clips}: expected at least {group} clips")
            plan(split, clips, self.seed, self.families)
        self.size()

    @classmethod
    def balanced(cls, **fields: Any) -> "LightScenesConfig":
        """The config of these fields with its splits cut to what ``families`` can balance."""
        families = fields.get("families", cls.families)
        return cls(**fields | {split: balanced(fields.get(split, getattr(cls, split)), families) for split in SPLITS})

    def size(self) -> ClipSize:
        return ClipSize(self.frames, self.height, self.width, float(self.fps), self.supersample)

    @property
    def name(self) -> str:
        return self._name({split: str(getattr(self, split)) for split in SPLITS})

    def pattern(self, split: str) -> str:
        """A glob of the names of configs with the same clips in ``split``, whatever the sizes of their other splits."""
        return self._name({name: str(getattr(self, name)) if name == split else "*" for name in SPLITS})

    def _name(self, clips: Mapping[str, str]) -> str:
        splits = "_".join(clips[split] for split in SPLITS)
        parts = [f"{self.height}x{self.width}x{self.frames}_{self.fps:g}fps_{splits}_seed{self.seed}"
                 f"_ss{self.supersample}"]
        if self.families == ALL:
            parts.append("all")
        elif self.families != FAMILIES:
            parts.append("-".join(name.replace("/", ".") for name in self.families))
        if self.passes != "basic":
            parts.append(f"{self.passes}_passes")
        return "_".join(parts)


def features(config: LightScenesConfig) -> tfds.features.FeaturesDict:
    """The features of one clip, described in docs/data.md."""
    size = config.size()
    t, h, w = size.frames, size.height, size.width

    def packed(shape: tuple[int, ...], dtype: type) -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="zlib")

    def small(shape: tuple[int, ...]) -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=shape, dtype=np.float32)

    content: dict[str, Any] = {
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
    if config.families != FAMILIES:
        content |= {
            "variant": tfds.features.Text(),
            "glints": tfds.features.Scalar(np.int32),
            "foot": small((t, 2)),
        }
    if config.passes == "all":
        content |= {name: packed((t, h, w, 3), np.float16) for name in _COLORS}
        content |= {
            "hard_visibility": packed((t, h, w), np.uint8),
            "depth": packed((t, h, w), np.float32),
            "object_id": packed((t, h, w), np.int8),
            "flow_backward": packed((t - 1, h, w, 2), np.float16),
            "occluded": packed((t - 1, h, w), np.uint8),
            "occluded_backward": packed((t - 1, h, w), np.uint8),
            "shadow_flow": packed((t - 1, h, w, 2), np.float16),
            "shadow_flow_known": packed((t - 1, h, w), np.uint8),
            "light_position": small((t, 3)),
            "light_intensity": small((t,)),
            "camera_pose": small((t, 3, 4)),
            "camera_half_width": tfds.features.Scalar(np.float32),
            "glint": small((t,)),
        }
    return tfds.features.FeaturesDict(content)


_COLORS = ("direct", "shadowed", "ambient", "specular", "albedo", "normal")


def example_of(clip: Clip, config: LightScenesConfig) -> dict[str, Any]:
    """A clip as the features of ``features``."""
    texts = captions(clip.spec)
    example = {
        "video": clip.video,
        "caption_en": texts["en"],
        "caption_zh": texts["zh"],
        "family": clip.spec.family,
        "scene_id": clip.spec.scene_id,
        "fps": np.float32(config.fps),
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
    if config.families != FAMILIES:
        foot = clip.foot
        example |= {
            "variant": clip.spec.variant,
            "glints": np.int32(clip.spec.glints),
            "foot": np.full((config.frames, 2), -1, np.float32) if foot is None else foot,
        }
    if config.passes == "all":
        example |= _stored(clip.passes, config.frames)
    return example


def _stored(passes: Passes, frames: int) -> dict[str, Any]:
    """The passes that ``"basic"`` leaves out, as they are stored."""
    position, glint = passes.light_position, passes.glint
    return {name: getattr(passes, name).astype(np.float16) for name in _COLORS} | {
        "hard_visibility": np.round(passes.hard_visibility * 255).astype(np.uint8),
        "depth": passes.depth,
        "object_id": passes.object_id,
        "flow_backward": passes.flow_backward.motion.astype(np.float16),
        "occluded": passes.flow.occluded.astype(np.uint8),
        "occluded_backward": passes.flow_backward.occluded.astype(np.uint8),
        "shadow_flow": passes.shadow_flow.astype(np.float16),
        "shadow_flow_known": passes.shadow_flow_known.astype(np.uint8),
        "light_position": passes.light_direction * SKY_DEPTH if position is None else position,
        "light_intensity": passes.light_intensity,
        "camera_pose": passes.camera_pose,
        "camera_half_width": np.float32(passes.camera_half_width),
        "glint": np.zeros(frames, np.float32) if glint is None else glint,
    }


class LightScenes(tfds.core.GeneratorBasedBuilder):
    """Rendered clips with exact light; build it through ``prepare``."""

    name = "light_scenes"
    # Raised whenever the same config would give other bytes.
    VERSION = tfds.core.Version("1.0.0")
    # TFDS looks for checksums of downloads beside the code, by way of a package it does not require on
    # Python >= 3.9 (importlib_resources). Nothing is downloaded here.
    code_path = None

    def __init__(self, *, scenes: LightScenesConfig | None = None, beam: bool = False, **kwargs: Any) -> None:
        """``beam``: clips are rendered by an Apache Beam pipeline; the data set is the same."""
        self.scenes = scenes or LightScenesConfig()
        self.beam = beam
        kwargs.setdefault("config", tfds.core.BuilderConfig(name=self.scenes.name))
        kwargs.setdefault("file_format", "array_record")
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        # Without shuffling the order on disk is that of `plan`, so an index names a clip.
        return tfds.core.DatasetInfo(
            builder=self,
            description="Rendered clips whose light, motion and captions are known exactly.",
            features=features(self.scenes),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Any:
        """Pairs (index, example), as an iterator or as a transform of Apache Beam."""
        scenes = self.scenes
        numbered = enumerate(plan(split, getattr(scenes, split), scenes.seed, scenes.families))
        render = functools.partial(_numbered_example, config=scenes)
        if not self.beam:
            return map(render, numbered)
        beam = tfds.core.lazy_imports.apache_beam
        return beam.Create(list(numbered)) | beam.Reshuffle() | beam.Map(render)


def _numbered_example(numbered: tuple[int, ClipSpec], *, config: LightScenesConfig) -> tuple[int, dict[str, Any]]:
    index, spec = numbered
    return index, example_of(render_clip(spec, config.size(), config.passes == "all"), config)


def _beam_settings(runner: str, options: Sequence[str]) -> tfds.download.DownloadConfig:
    """Raises ImportError, saying what to install, if Apache Beam is not there."""
    try:
        options_class = tfds.core.lazy_imports.apache_beam.options.pipeline_options.PipelineOptions
    except ImportError as error:
        raise ImportError(
            f"beam_runner = {runner!r} needs Apache Beam: pip install 'wanjax[beam]' into an environment of its own "
            "(it wants older versions of protobuf, pillow and pyarrow than constraints.txt names; docs/data.md)"
        ) from error
    return tfds.download.DownloadConfig(beam_runner=runner, beam_options=options_class(list(options)))


def prepare(
    data_dir: str | Path,
    *,
    config: LightScenesConfig | None = None,
    beam_runner: str | None = None,
    beam_options: Sequence[str] = (),
) -> LightScenes:
    """Writes the data set under ``data_dir`` unless it is there, and returns its builder.

    With ``beam_runner`` (``"DirectRunner"``, ``"FlinkRunner"``, ``"DataflowRunner"``, ...) the clips are rendered by
    an Apache Beam pipeline with ``beam_options`` (such as ``"--direct_num_workers=8"``), on as many machines as it has.

    A run that was cut off leaves nothing that is taken for whole: the next one clears it and starts over. A
    second run on the same ``data_dir`` waits for the first.
    """
    root = Path(data_dir).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    settings = None if beam_runner is None else _beam_settings(beam_runner, beam_options)
    builder = LightScenes(scenes=config, data_dir=str(root), beam=beam_runner is not None)
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
        builder.download_and_prepare(download_config=settings)
    return builder


def open_split(data_dir: str | Path, split: str, *, config: LightScenesConfig | None = None) -> Any:
    """A random-access source of one split: ``source[i]`` is a dict of numpy arrays.

    What a split holds does not depend on the sizes of the others: where ``config`` itself is not there, a data set
    that differs from it only in those is opened.

    Raises FileNotFoundError if the data set has not been prepared, ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    builder = LightScenes(scenes=config, data_dir=str(Path(data_dir).expanduser()))
    if not builder.is_prepared():
        wanted = builder.scenes.pattern(split)
        for folder in sorted(Path(builder.data_dir).parent.parent.glob(f"{wanted}/{builder.version}")):
            if (folder / "dataset_info.json").exists():
                return tfds.builder_from_directory(folder).as_data_source(split)
        raise FileNotFoundError(
            f"light_scenes is not at {builder.data_path}: run `python -m data_pipelines.light_scenes "
            f"--data_dir {data_dir}` with the same sizes, or call data_pipelines.light_scenes.prepare"
        )
    return builder.as_data_source(split)
