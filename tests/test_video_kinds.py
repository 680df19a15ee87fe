"""Files of other people's: deep, HDR, full-range, turned, unevenly timed, and what is no video."""

import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from wanjax import video
from wanjax.light.metrics import measure
from wanjax.light.photometry import linear_to_srgb, srgb_to_linear
from wanjax.video import VideoError

LIMITED, FULL = 1, 2
BT709, BT601, BT2020, YCGCO = 1, 6, 9, 8
LUMA = {BT709: (0.2126, 0.0722), BT601: (0.299, 0.114), BT2020: (0.2627, 0.0593)}
PQ, HLG = 16, 18
# Report BT.2407, annex 2
BT2020_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])


def record(
    path: Path, rgb, *, codec="libx264", pixel_format="yuv420p", matrix=BT709, range_=LIMITED, transfer=2, primaries=2,
    ticks=(0, 1, 2), height=64, width=96, rate=10,
) -> Path:  # fmt: skip
    """A clip of plain frames: one non-linear RGB in [0, 1], or one per tick; Y'CbCr codes are made here, by H.273."""
    bits = 10 if "10" in pixel_format else 8
    options = {"crf": "0"} | ({"x265-params": "log-level=none"} if codec == "libx265" else {})
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        clock = Fraction(1, 10 * rate)
        stream.time_base = stream.codec_context.time_base = clock
        context = stream.codec_context
        context.color_range, context.colorspace = range_, matrix
        context.color_trc, context.color_primaries = transfer, primaries
        for tick, color in zip(ticks, np.broadcast_to(rgb, (len(ticks), 3)), strict=True):
            frame = av.VideoFrame(width, height, pixel_format)
            for plane, code in zip(frame.planes, codes(color, matrix, range_, bits), strict=True):
                kind = np.dtype(np.uint16 if bits > 8 else np.uint8)
                plane.update(np.full(plane.buffer_size // kind.itemsize, round(code), kind).tobytes())
            frame.pts, frame.time_base = round(10 * tick), clock
            frame.color_range, frame.colorspace = range_, matrix
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def codes(rgb, matrix: int, range_: int, bits: int) -> tuple[float, float, float]:
    unit, peak = 1 << (bits - 8), (1 << bits) - 1
    kr, kb = LUMA.get(matrix, LUMA[BT709])
    y = kr * rgb[0] + (1 - kr - kb) * rgb[1] + kb * rgb[2]
    u, v = (rgb[2] - y) / (2 - 2 * kb), (rgb[0] - y) / (2 - 2 * kr)
    if range_ == FULL:
        return y * peak, u * peak + 128 * unit, v * peak + 128 * unit
    return (219 * y + 16) * unit, (224 * u + 128) * unit, (224 * v + 128) * unit


def shown(path: Path) -> np.ndarray:
    return video.read(path).frames[1, 16, 24].astype(float) / 255


def measured(path: Path) -> np.ndarray:
    return list(video.stream(path, exact=True).frames)[1][16, 24]


COLOR = (0.72, 0.45, 0.30)


@pytest.mark.parametrize("range_", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", [BT709, BT601, BT2020])
@pytest.mark.parametrize(("codec", "pixel_format"), [("libx264", "yuv420p"), ("libvpx-vp9", "yuv420p")])
def test_range_and_matrix_are_read_as_tagged(tmp_path, codec, pixel_format, matrix, range_):
    path = record(tmp_path / "a.mp4", COLOR, codec=codec, pixel_format=pixel_format, matrix=matrix, range_=range_)
    assert np.abs(shown(path) - COLOR).max() < 1.6 / 255
    stated = video.probe(path)
    assert stated.range == {LIMITED: "limited", FULL: "full"}[range_]
    assert stated.matrix == {BT709: "BT.709", BT601: "BT.601", BT2020: "BT.2020"}[matrix]


@pytest.mark.parametrize("range_", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", [BT709, BT601])
@pytest.mark.parametrize(
    ("codec", "pixel_format"), [("libx264", "yuv420p10le"), ("libx265", "yuv420p10le"), ("libx264", "yuv444p10le")]
)
def test_ten_bits_are_measured_as_ten(tmp_path, codec, pixel_format, matrix, range_):
    path = record(tmp_path / "a.mp4", COLOR, codec=codec, pixel_format=pixel_format, matrix=matrix, range_=range_)
    exact = measured(path)
    assert exact.dtype == np.float32
    assert np.abs(exact - COLOR).max() < 1.6 / 1023
    assert np.abs(shown(path) - COLOR).max() < 1.3 / 255
    assert video.probe(path).bits == 10


def test_a_quarter_of_an_eight_bit_step_is_seen_in_ten_bits(tmp_path):
    steps = [
        measured(record(tmp_path / f"{i}.mp4", (0.5 + i / 876,) * 3, pixel_format="yuv420p10le"))[0] for i in range(4)
    ]
    assert np.diff(steps) == pytest.approx(1 / 876, rel=0.01)


@pytest.mark.parametrize(
    ("transfer", "signal", "nits"),
    # SMPTE ST 2084 and Report BT.2408, tables 1 and 2
    [(PQ, 0.508, 100), (PQ, 0.581, 203), (PQ, 0.7518, 1000), (HLG, 0.75, 203), (HLG, 1.0, 1000)],
)
def test_hdr_is_relative_linear_light(tmp_path, transfer, signal, nits):
    tags = dict(codec="libx265", pixel_format="yuv420p10le", matrix=BT2020, primaries=BT2020, transfer=transfer)
    path = record(tmp_path / "a.mp4", (signal,) * 3, **tags)
    assert srgb_to_linear(measured(path)) * 1000 == pytest.approx(nits, rel=0.02)
    assert video.probe(path).hdr == {PQ: "PQ", HLG: "HLG"}[transfer]
    assert shown(path).max() <= 1


def test_the_same_light_measures_the_same_in_sdr_pq_and_hlg(tmp_path):
    stops = 0.5 * np.arange(9) / 10 + 0.04 * (-1) ** np.arange(9) - 1.5  # rises by half a stop per second, and flickers
    light = np.exp2(stops)[:, None] * np.linspace([0.95, 0.95, 1.05], [1.05, 0.95, 0.9], 9)  # linear Rec. 709, warming
    wide = light @ np.linalg.inv(BT2020_TO_BT709).T * 203  # cd/m2, a white page at 203
    root = (wide / 10_000) ** (2610 / 16384)
    scene = wide / 1000 * ((wide / 1000) @ (0.2627, 0.6780, 0.0593))[:, None] ** (-0.2 / 1.2)
    a = 0.17883277
    bright = a * np.log(np.maximum(12 * scene - (1 - 4 * a), 1e-9)) + 0.5 - a * np.log(4 * a)
    signals = {
        PQ: ((3424 / 4096 + 2413 / 128 * root) / (1 + 2392 / 128 * root)) ** (2523 / 32),
        HLG: np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright),
    }
    ten = dict(pixel_format="yuv420p10le", ticks=range(9))
    clips = {1: record(tmp_path / "sdr.mp4", linear_to_srgb(light), **ten)}
    for transfer, signal in signals.items():
        tags = dict(codec="libx265", matrix=BT2020, primaries=BT2020, transfer=transfer)
        clips[transfer] = record(tmp_path / f"{transfer}.mp4", signal, **tags, **ten)
    measures = {k: measure(video.stream(path, exact=True).frames, fps=10) for k, path in clips.items()}
    assert measures[1]["global_flicker"] == pytest.approx(0.16, rel=0.02)
    for transfer in (PQ, HLG):
        for name in ("global_flicker", "common_flicker", "exposure_slope", "cct_drift"):  # within steps of ten bits
            assert measures[transfer][name] == pytest.approx(measures[1][name], rel=0.05), (transfer, name)


def test_hdr_white_is_shown_as_white_and_a_highlight_not_darker(tmp_path):
    tags = dict(codec="libx265", pixel_format="yuv420p10le", matrix=BT2020, primaries=BT2020, transfer=PQ)
    page, lamp = (shown(record(tmp_path / f"{s}.mp4", (s,) * 3, **tags))[0] for s in (0.581, 0.75))
    assert 0.85 < page < lamp <= 1


def test_wide_gamut_keeps_grey_and_luminance(tmp_path):
    tags = dict(pixel_format="yuv420p10le", matrix=BT2020, primaries=BT2020, transfer=14)
    grey = measured(record(tmp_path / "grey.mp4", (0.5, 0.5, 0.5), **tags))
    assert np.abs(grey - 0.5).max() < 2e-3
    muted = np.array([0.5, 0.55, 0.45])
    luminance = srgb_to_linear(muted) @ (0.2627, 0.6780, 0.0593)
    got = srgb_to_linear(measured(record(tmp_path / "muted.mp4", muted, **tags))) @ (0.2126, 0.7152, 0.0722)
    assert got == pytest.approx(luminance, rel=0.01)


def test_linear_samples_are_taken_as_linear(tmp_path):
    path = record(tmp_path / "a.mp4", (0.2, 0.2, 0.2), transfer=8, pixel_format="yuv420p10le")
    assert srgb_to_linear(measured(path)) == pytest.approx(0.2, abs=2e-3)


@pytest.mark.parametrize(
    ("tags", "message"),
    [({"matrix": YCGCO}, "its colours are YCgCo"), ({"transfer": 9}, "its transfer function is logarithmic"),
     ({"primaries": 11}, "its primaries are DCI-P3")],
)  # fmt: skip
def test_colours_that_cannot_be_converted_are_refused_by_name(tmp_path, tags, message):
    path = record(tmp_path / "odd.mp4", COLOR, **tags)
    for attempt in (video.read, video.probe):
        with pytest.raises(VideoError, match=f"odd.mp4: {message}.*BT.709"):
            attempt(path)


@pytest.mark.parametrize(("name", "rate"), [("a.mp4", 10), ("a.mkv", 24), ("a.webm", 60)])
def test_even_timing_is_even_in_any_container(tmp_path, name, rate):
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    stated = video.probe(record(tmp_path / name, COLOR, codec=codec, rate=rate, ticks=range(12)))
    assert stated.jitter < video.JITTER_LIMIT
    assert stated.fps == pytest.approx(rate, rel=0.005)
    assert stated.frames == 12


def test_uneven_timing_is_told_with_where(tmp_path):
    stated = video.probe(record(tmp_path / "a.mp4", COLOR, ticks=(0, 1, 2, 3, 7, 8, 9)))
    assert stated.jitter == pytest.approx(3, abs=0.2)
    assert stated.worst_gap == (4, pytest.approx(0.4))
    assert stated.spacing == pytest.approx(0.1)
    mild = video.probe(record(tmp_path / "b.mp4", COLOR, ticks=(0, 1, 2.1, 3, 4, 5)))
    assert mild.jitter == pytest.approx(0.1, abs=0.1)


def turned(path: Path) -> Path:
    """Sets the display matrix of an MP4's track header (ISO/IEC 14496-12, 8.3.2) to a quarter turn."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    matrix = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    data[start : start + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(data)
    return path


def test_a_clip_filmed_upright_stands_upright(tmp_path):
    frames = np.zeros((3, 32, 48, 3), np.uint8)
    frames[:, :, :12] = 220  # the left edge of what the sensor saw becomes the top
    video.write(tmp_path / "a.mp4", frames, 8)
    path = turned(tmp_path / "a.mp4")
    upright = video.read(path).frames
    assert upright.shape == (3, 48, 32, 3)
    assert upright[0, :10].min() > 200
    assert upright[0, 16:].max() < 20
    stated = video.probe(path)
    assert (stated.height, stated.width, stated.rotation) == (48, 32, 270)


def test_what_is_no_moving_picture_is_refused(tmp_path):
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    (tmp_path / "notes.txt").write_text("sunrise\n" * 50)
    Image.new("RGB", (32, 32)).save(tmp_path / "still.png")
    with av.open(str(tmp_path / "empty.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 32
        container.start_encoding()
    for name, message in [
        ("sound.wav", r"holds no video stream \(found: audio\)"),
        ("notes.txt", "not a video, or damaged"),
        ("still.png", "a still picture, not a video"),
        ("empty.mp4", "no video stream|no frame"),
    ]:
        with pytest.raises(VideoError, match=f"{name}: .*({message})"):
            video.probe(tmp_path / name)
        with pytest.raises(VideoError, match=f"{name}: .*({message})"):
            video.read(tmp_path / name)


def test_a_picture_that_changes_its_size_is_refused_where_it_does(tmp_path):
    small, large = (record(tmp_path / f"{h}.h264", COLOR, height=h, ticks=range(4)) for h in (64, 128))
    (tmp_path / "both.h264").write_bytes(small.read_bytes() + large.read_bytes())
    with pytest.raises(VideoError, match="both.h264: its picture changes from 96 x 64 to 96 x 128 pixels at frame 4"):
        video.read(tmp_path / "both.h264")
