"""Images that a caller gives: they become the pixels that Pillow reads; anything else raises an error that names the argument."""

import hashlib
import io
import zlib

import numpy as np
import pytest
from PIL import Image

from tfsd.images.inputs import FITS, MAX_PIXELS, read_images

SIZE = (16, 24)  # height, width
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(value, batch: int = 1, fit: str = "crop", size=SIZE) -> np.ndarray:
    return read_images("image", value, batch, size, fit)[0]


def levels(values: np.ndarray) -> np.ndarray:
    """Levels from 0 to 255 of values in [-1, 1]."""
    assert values.dtype == np.float32 and values.min() >= -1 and values.max() <= 1
    return (values + 1) * 127.5


EXPECTED = PIXELS.astype("float32")[None]


def test_a_file_its_bytes_an_image_and_arrays_are_the_same_pixels(tmp_path):
    file = tmp_path / "image.png"
    file.write_bytes(encoded(Image.fromarray(PIXELS)))
    for value in (file, str(file), file.read_bytes(), Image.fromarray(PIXELS), PIXELS, PIXELS.astype("float64") / 255):
        np.testing.assert_allclose(levels(read(value)), EXPECTED, rtol=0, atol=1e-3)


def test_an_image_that_has_the_size_keeps_its_floats():
    values = RANDOM.random((*SIZE, 3)).astype("float32")
    np.testing.assert_array_equal(read(values)[0], values * 2 - 1)


def test_one_image_serves_all_and_a_list_has_one_for_each():
    other = 255 - PIXELS
    values, hashes = read_images("image", [PIXELS, other], 2, SIZE, "crop")
    np.testing.assert_allclose(levels(values), [PIXELS, other], rtol=0, atol=1e-3)
    assert hashes == [hashlib.sha256(one.tobytes()).hexdigest() for one in (PIXELS, other)]
    np.testing.assert_array_equal(read(np.stack([PIXELS, other]), 2), values)
    np.testing.assert_array_equal(read(PIXELS, 3), np.repeat(values[:1], 3, axis=0))


def test_the_hash_is_that_of_the_file():
    data = encoded(Image.fromarray(PIXELS))
    assert read_images("image", data, 2, SIZE, "crop")[1] == [hashlib.sha256(data).hexdigest()] * 2


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_another_shape_is_fitted(fit, kind):
    """An image of 8 x 8: its left half black, its right half grey."""
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 128
    value = image if kind == "uint8" else image / 255
    fitted = levels(read(value, fit=fit, size=(16, 32)))[0].round()
    black, grey, white = (np.full(3, level) for level in (0, 128, 255))
    left, right = fitted[8, 1], fitted[8, -2]
    if fit == "pad":  # 16 x 16 in the middle
        assert (left == white).all() and (right == white).all()
        left, right = fitted[8, 9], fitted[8, -10]
    np.testing.assert_allclose([left, right], [black, grey], atol=1)


def test_crop_keeps_the_middle():
    image = np.zeros((8, 24, 3), np.uint8)
    image[:, 8:16] = 200
    np.testing.assert_allclose(levels(read(image, size=(8, 8))), 200, atol=1)


def test_orientation_of_a_photo_is_applied():
    turned, exif = Image.fromarray(PIXELS).transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # turn by 270 degrees to show it
    np.testing.assert_allclose(levels(read(encoded(turned, exif=exif))), EXPECTED, rtol=0, atol=1e-3)


def test_transparency_becomes_white():
    alpha = np.dstack([PIXELS, np.zeros(SIZE, np.uint8)])
    alpha[0, :, 3] = 255
    found = levels(read(encoded(Image.fromarray(alpha))))[0]
    np.testing.assert_allclose(found[0], PIXELS[0], rtol=0, atol=1e-3)
    np.testing.assert_allclose(found[1:], 255)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "PA"])
def test_other_modes_are_read_as_pillow_converts_them(mode):
    image = Image.fromarray(PIXELS)
    image = image.quantize(16).convert("PA") if mode == "PA" else image.convert(mode)
    np.testing.assert_allclose(levels(read(image))[0], np.asarray(image.convert("RGB")), rtol=0, atol=1e-3)


def test_sixteen_bits_become_eight():
    grey = PIXELS[..., 0].astype("uint16") * 257
    data = encoded(Image.fromarray(grey))
    np.testing.assert_allclose(levels(read(data))[0, ..., 1], PIXELS[..., 0], rtol=0, atol=1e-3)


def test_a_cmyk_photo_is_read():
    data = encoded(Image.new("CMYK", (24, 16), (0, 255, 255, 0)), "JPEG")
    found = levels(read(data))[0, 8, 8]
    assert found[0] > 200 and found[1] < 60 and found[2] < 60


def animated() -> bytes:
    black, white = (Image.new("L", (8, 8), level) for level in (0, 255))
    return encoded(black, "GIF", save_all=True, append_images=[white])


def bomb() -> bytes:
    """A PNG file whose header says 60 000 x 60 000."""
    data = bytearray(encoded(Image.new("L", (1, 1))))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (7, TypeError, "image must be the path or the bytes of a file, an image of Pillow or an array; got int"),
        (None, TypeError, "got NoneType"),
        (b"not an image", ValueError, "image is not an image file that can be read: PNG, JPEG"),
        (b"", ValueError, "image is not an image file"),
        (encoded(Image.fromarray(PIXELS), "JPEG")[:300], ValueError, "image (is damaged|cannot be read|is not an image file)"),
        (encoded(Image.fromarray(PIXELS))[:-40], ValueError, "image is damaged"),
        (animated(), ValueError, "image must be a single image; got 2 frames"),
        (bomb(), ValueError, "image (must have from 1 to|cannot be read)"),
        (PIXELS[0], ValueError, r"image must have shape \[H, W, 3\]; got \[24, 3\]"),
        (PIXELS[..., :2], ValueError, r"got \[16, 24, 2\]"),
        (PIXELS.astype("int32"), TypeError, r"image must be uint8, or float in \[0, 1\]; got int32"),
        (PIXELS / 1.0, ValueError, "image must have values from 0 to 1; got"),
        (np.full((8, 8, 3), np.nan), ValueError, "image must have values from 0 to 1; got"),
        (np.zeros((0, 8, 3), "uint8"), ValueError, "image must have shape"),
        ([PIXELS] * 3, ValueError, "one image for all or one for each of the 2 images; got 3"),
        ([PIXELS, 7], TypeError, r"image\[1\] must be the path"),
        (np.broadcast_to(np.uint8(0), (2**14, 2**12 + 1, 3)), ValueError, f"image must have from 1 to {MAX_PIXELS} pixels"),
    ],
)
def test_what_is_no_image_is_refused(value, error, message):
    with pytest.raises(error, match=message):
        read(value, 2)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="image must be an image file: .*none.png"):
        read(tmp_path / "none.png")


def test_a_file_without_end_is_refused():
    with pytest.raises(ValueError, match="image '/dev/zero' has more than"):
        read("/dev/zero")
