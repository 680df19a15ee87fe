"""Statements about pictures: how files become pixels, and pixels a clip's frame."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from wanjax.images import ImageError, prepare_image, read_image, size_like

ORIENTATION = 0x0112  # of EXIF


def picture(height=6, width=9, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(path, pixels, mode=None, **options):
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


# -- files ------------------------------------------------------------------------------------------------


def test_pixels_are_read_as_they_are(tmp_path):
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.png", picture())), picture())


def test_a_picture_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the camera was held so that the picture has to be turned a quarter clockwise
    saved(tmp_path / "a.png", picture(), exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(picture(), -1))


def test_sixteen_bits_of_grey_are_rounded_to_eight(tmp_path):
    deep = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    found = read_image(saved(tmp_path / "a.png", deep))
    np.testing.assert_array_equal(found[..., 0], [[0, 0, 1, 1, 128, 255]])
    assert found.shape == (1, 6, 3) and (found == found[..., :1]).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_grey_and_opaque_alpha_become_rgb(tmp_path, mode):
    grey = np.repeat(picture()[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.png", grey, mode)), grey)


def test_a_palette_becomes_its_colours(tmp_path):
    flat = np.zeros((4, 4, 3), np.uint8) + np.array([10, 200, 30], np.uint8)
    flat[:2] = 255, 0, 7
    image = Image.fromarray(flat).quantize(4)
    image.save(tmp_path / "a.png")
    assert image.mode == "P"
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), flat)


def test_the_colour_profile_is_applied(tmp_path):
    """In this profile the numbers of red are blue's: its two tags have changed places."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    renamed = srgb.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    swapped = renamed.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)
    found = read_image(saved(tmp_path / "a.png", picture(), icc_profile=swapped))
    np.testing.assert_allclose(found.astype(int), picture()[..., ::-1], atol=2)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "b.png", picture(), icc_profile=srgb)), picture())


def test_a_profile_that_cannot_be_read_is_named(tmp_path):
    path = saved(tmp_path / "a.png", picture(), icc_profile=b"not a profile")
    with pytest.raises(ImageError, match=r"a\.png: its colour profile cannot be applied.*convert it to sRGB"):
        read_image(path)


def test_transparency_is_refused_rather_than_filled_with_some_colour(tmp_path):
    clear = np.concatenate([picture(), np.full((6, 9, 1), 254, np.uint8)], axis=-1)
    key = picture()
    key[0, 0] = 0  # the one pixel of the transparent colour
    for path in (saved(tmp_path / "a.png", clear), saved(tmp_path / "b.png", key, transparency=(0, 0, 0))):
        with pytest.raises(ImageError, match="transparent pixels; flatten it"):
            read_image(path)


def test_what_is_not_a_whole_still_picture_is_named(tmp_path):
    whole = saved(tmp_path / "whole.png", picture(64, 64)).read_bytes()
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("a lamp")
    (tmp_path / "broken.png").write_bytes(whole[:60] + bytes(40) + whole[100:])
    frames = [Image.fromarray(picture(seed=seed)) for seed in range(2)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tiff")
    for name, message in {
        "empty.png": "the file is empty", "cut.png": "cut short or damaged", "broken.png": "cut short or damaged",
        "text.png": "not a picture in a format", "moving.gif": "an animation", "float.tiff": "mode 'F'",
    }.items():  # fmt: skip
        with pytest.raises(ImageError, match=f"{name}: .*{message}"):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="absent.png: no such image file"):
        read_image(tmp_path / "absent.png")


# -- sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image,area,step,size",
    [  # what best_output_size of Wan2.2 gives, as (height, width)
        ((1080, 1920), 480 * 832, 16, (480, 832)),
        ((1920, 1080), 480 * 832, 16, (832, 480)),
        ((1000, 1000), 480 * 832, 16, (624, 640)),
        ((3024, 4032), 720 * 1280, 16, (832, 1104)),
        ((480, 832), 720 * 1280, 16, (736, 1248)),
        ((720, 1280), 704 * 1280, 32, (704, 1248)),
            ((704, 1280), 704 * 1280, 32, (704, 1280)),
    ],
)
def test_a_clip_is_shaped_like_its_image(image, area, step, size):
    assert size_like(*image, area=area, step_h=step, step_w=step) == size


def test_sides_are_multiples_of_their_own_steps_and_fill_the_area():
    for height, width in np.random.default_rng(0).integers(500, 2000, (50, 2)).tolist():
        high, wide = size_like(height, width, area=480 * 832, step_h=16, step_w=48)
        assert not high % 16 and not wide % 48 and 0.85 * 480 * 832 < high * wide <= 480 * 832
        assert abs(np.log(wide / high) - np.log(width / height)) < 16 / high + 48 / wide


def test_an_image_that_leaves_no_clip_is_refused():
    with pytest.raises(ValueError, match="100 x 10000 .*crop the image"):
        size_like(100, 10_000, area=64 * 64, step_h=16, step_w=16)
    with pytest.raises(ValueError, match="expected at least 1"):
        size_like(0, 10, area=4096, step_h=16, step_w=16)


# -- pixels -----------------------------------------------------------------------------------------------


def test_an_image_of_the_right_size_keeps_its_pixels():
    expected = (picture() / 255.0 - 0.5) / 0.5
    for image, tolerance in ((picture(), 1e-6), (picture() / 255.0, 1e-6)):
        prepared = prepare_image(image, 6, 9)
        assert prepared.dtype == np.float32
        np.testing.assert_allclose(prepared, expected, atol=tolerance)


@pytest.mark.parametrize("size", [(20, 50), (50, 20)])
def test_the_middle_is_cut_out_of_what_covers_the_clip(size):
    """Steps of brightness along the longer side, 5 pixels each; half the scale leaves the 10 steps' middle 4."""
    steps = np.repeat(np.arange(10), 5) * 20
    image = np.broadcast_to(steps if size[1] == 50 else steps[:, None], size).astype(np.uint8)
    prepared = prepare_image(np.repeat(image[..., None], 3, axis=-1), 10, 10)
    along = prepared[5, :, 0] if size[1] == 50 else prepared[:, 5, 0]
    middles = (along[[1, 8]] + 1) * 127.5  # of pixels 15..34, the third and the seventeenth
    np.testing.assert_allclose(middles, [60, 120], atol=8)
    assert prepared.shape == (10, 10, 3) and np.ptp(prepared[..., 0], axis=0 if size[1] == 50 else 1).max() < 1e-6


def test_fine_detail_is_averaged_and_does_not_alias():
    checks = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    prepared = prepare_image(np.repeat(checks[..., None], 3, axis=-1).astype(np.uint8), 24, 24)
    assert np.abs(prepared[4:-4, 4:-4]).max() < 0.02


def test_floats_are_resized_as_eight_bits_are():
    edge = np.zeros((40, 30, 3), np.uint8)
    edge[:, 15:] = 255  # where Lanczos overshoots
    eight = prepare_image(edge, 24, 24)
    got = prepare_image(edge / 255.0, 24, 24)
    assert got.min() == -1 and got.max() == 1
    np.testing.assert_allclose(got, eight, atol=2 / 255)


@pytest.mark.parametrize(
    "image,message",
    [
        (np.zeros((4, 4), np.uint8), r"image \[4, 4\] uint8: expected \[H, W, 3\]"),
        (np.zeros((4, 4, 3), np.int32), "int32: expected"),
        (np.full((4, 4, 3), 2.0), "values from 2 to 2: floats are expected in"),
        (np.full((4, 4, 3), np.nan), "values from nan"),
    ],
)
def test_other_images_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        prepare_image(image, 4, 4)
