"""Video files: what goes in comes out, files are tagged for browsers, and broken ones are named."""

from pathlib import Path

import av
import numpy as np
import pytest

from wanjax import video
from wanjax.video import VideoError

REAL = Path(__file__).parents[2] / "shared" / "clips"


def smooth(frames: int = 9, height: int = 48, width: int = 64) -> np.ndarray:
    """[T, H, W, 3] uint8, colours that drift."""
    t, y, x = np.mgrid[:frames, :height, :width] / np.array([frames, height, width])[:, None, None, None]
    pixels = np.stack([0.2 + 0.6 * x, 0.3 + 0.4 * y * x, 0.8 - 0.5 * t], axis=-1)
    return np.round(255 * pixels).astype(np.uint8)


@pytest.fixture
def written(tmp_path) -> Path:
    path = tmp_path / "made" / "clip.mp4"
    video.write(path, smooth(), 8.0, {"prompt": "晨光 slides left", "seed": 7, "settings": {"steps": 40}})
    return path


def test_frames_rate_and_facts_come_back(written):
    frames, fps, metadata = video.read(written)
    assert fps == 8.0
    assert metadata == {"prompt": "晨光 slides left", "seed": 7, "settings": {"steps": 40}}
    assert frames.shape == smooth().shape
    error = frames.astype(float) - smooth()
    assert np.abs(error).mean() < 1.5
    assert np.abs(error.mean(axis=(0, 1, 2))).max() < 1, "no cast of colour or exposure"


@pytest.mark.parametrize(
    "color", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40)]
)
def test_plain_colours_keep_their_values(tmp_path, color):
    video.write(tmp_path / "a.mp4", np.full((2, 16, 16, 3), color, np.uint8), 8)
    assert np.abs(video.read(tmp_path / "a.mp4").frames.astype(int) - color).max() <= 3


def test_the_file_is_what_browsers_play(written):
    with av.open(str(written)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (
            1,
            1,
            1,
            1,
        )
    assert written.read_bytes().find(b"moov") < written.read_bytes().find(b"mdat"), (
        "plays before it is all there"
    )


@pytest.mark.parametrize("fps", [8, 16, 24000 / 1001, 12.5])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_any_length_and_rate(tmp_path, frames, fps):
    video.write(tmp_path / "a.mp4", smooth(frames), fps)
    back = video.read(tmp_path / "a.mp4")
    assert len(back.frames) == frames
    assert back.fps == pytest.approx(fps, rel=1e-4)
    assert back.metadata == {}


def test_frames_may_come_one_by_one(tmp_path):
    video.write(tmp_path / "a.mp4", iter(smooth()), 8)
    frames, _, _ = video.stream(tmp_path / "a.mp4")
    assert next(frames).shape == (48, 64, 3)
    assert sum(1 for _ in frames) == 8


def test_a_failed_write_leaves_the_old_file_and_nothing_else(written):
    before = written.read_bytes()

    def frames():
        yield from smooth(2)
        raise RuntimeError("the sampler died")

    with pytest.raises(RuntimeError, match="sampler"):
        video.write(written, frames(), 8)
    assert written.read_bytes() == before
    assert [p.name for p in written.parent.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize(
    ("frames", "arguments", "message"),
    [
        (smooth()[:, :47], {}, "47 x 64 .* pad to 48 x 64"),
        (smooth()[:0], {}, "no frames"),
        (smooth() / 255, {}, "float64, expected"),
        ([smooth()[0], smooth(1, 32)[0]], {}, "frame 1 is"),
        (smooth(), {"fps": 0}, "fps = 0"),
        (smooth(), {"crf": 99}, "crf = 99"),
    ],
)
def test_what_cannot_be_written_is_refused_with_a_remedy(tmp_path, frames, arguments, message):
    with pytest.raises(VideoError, match=message):
        video.write(tmp_path / "a.mp4", frames, **({"fps": 8} | arguments))
    assert not list(tmp_path.iterdir())


def test_missing_empty_cut_and_foreign_files_are_named(tmp_path, written):
    with pytest.raises(FileNotFoundError, match="nowhere.mp4: no such video"):
        video.read(tmp_path / "nowhere.mp4")
    bad = tmp_path / "bad.mp4"
    for content, message in [
        (b"", "empty"),
        (b"these are words, not a video" * 9, "not a video"),
        (written.read_bytes()[:-200], "cut short"),
        (written.read_bytes()[:300], "no video stream"),
    ]:
        bad.write_bytes(content)
        with pytest.raises(VideoError, match=f"bad.mp4: .*{message}"):
            video.read(bad)


@pytest.mark.skipif(not REAL.exists(), reason="../shared/clips is absent")
def test_real_clips_open_upright_and_a_damaged_one_says_where():
    assert video.read(REAL / "bear.mp4").frames.shape == (16, 512, 512, 3)
    assert video.read(REAL / "broken" / "video_90.mov").frames.shape[1:3] == (568, 320)
    with pytest.raises(VideoError, match="corrupted.mp4: damaged after 28 frames"):
        video.read(REAL / "broken" / "corrupted.mp4")
