"""A data set that Apache Beam renders is the one that a single process writes."""

import importlib.util

import numpy as np
import pytest

from data_pipelines import light_scenes
from data_pipelines.light_scenes import LightScenesConfig

HAS_BEAM = importlib.util.find_spec("apache_beam") is not None
CONFIG = LightScenesConfig(frames=3, height=16, width=16, train=12, validation=6, test=6,
                           families=("street_lamp", "water_glitter"))


@pytest.mark.skipif(not HAS_BEAM, reason="needs apache-beam in an environment of its own: pip install '.[beam]'")
def test_beam_renders_the_same_data_set_in_the_same_order(tmp_path) -> None:
    light_scenes.prepare(tmp_path / "one", config=CONFIG)
    light_scenes.prepare(tmp_path / "beam", config=CONFIG, beam_runner="DirectRunner",
                         beam_options=["--direct_num_workers=1"])
    for split in light_scenes.SPLITS:
        first, second = (light_scenes.open_split(tmp_path / name, split, config=CONFIG) for name in ("one", "beam"))
        assert len(first) == len(second)
        for index in range(len(first)):
            ours, theirs = first[index], second[index]
            assert ours.keys() == theirs.keys()
            assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.skipif(HAS_BEAM, reason="apache-beam is installed")
def test_without_beam_the_remedy_is_named(tmp_path) -> None:
    with pytest.raises(ImportError, match=r"DirectRunner.*wanjax\[beam\].*environment of its own"):
        light_scenes.prepare(tmp_path, config=CONFIG, beam_runner="DirectRunner")
    assert not list(tmp_path.glob("light_scenes/*"))
