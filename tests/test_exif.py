"""JPEG and WebP files carry recipes as PNG files do, and untrusted ones are read safely."""

import io
import struct
import zlib

import numpy as np
import pytest
from pictures import pictures, recipe
from PIL import Image

from tfsd.images import ImageFileError, Images, read_recipe
from tfsd.images.files import encode

LOSSY = (".jpg", ".jpeg", ".webp", ".JPG")
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".JPG": "JPEG", ".webp": "WEBP"}
USER_COMMENT, MAKER_NOTE = 0x9286, 0x927C


def smooth(count=1) -> Images:
    """Pictures of colour gradients, which lossy formats keep well."""
    y, x = np.mgrid[0:64, 0:96]
    pixels = np.stack([np.stack([2 * x, 3 * y, x + y + 10 * i], -1) for i in range(count)]).astype("uint8")
    return Images(pixels, [recipe(i) for i in range(count)])


def exif_of(path) -> dict:
    """The tags as Pillow reads them, whose parser is not ours."""
    return Image.open(path).getexif().get_ifd(0x8769)


@pytest.mark.parametrize("ending", LOSSY)
def test_lossy_files_come_back_with_their_recipes_and_nearly_their_pixels(tmp_path, ending):
    images = smooth(5)
    for i, name in enumerate(images.save(tmp_path / f"out{ending}")):
        assert name.name == f"out-{i}{ending}" and read_recipe(name) == images.recipes[i]
        picture = Image.open(name)
        assert picture.format == FORMATS[ending] and picture.size == (96, 64)
        assert np.abs(np.asarray(picture, int) - np.asarray(images, int)[i]).mean() < 2


@pytest.mark.parametrize("ending", [".jpg", ".webp"])
def test_lossy_grids_have_all_recipes(tmp_path, ending):
    images = smooth(3)
    found = read_recipe(images.save_grid(tmp_path / f"grid{ending}", 3))
    assert found["columns"] == 3 and found["pictures"] == images.recipes


@pytest.mark.parametrize("ending", [".jpg", ".webp"])
def test_other_programs_find_the_readable_text(tmp_path, ending):
    images = pictures(2)
    for name, png in zip(images.save(tmp_path / f"out{ending}"), images.save(tmp_path / "out.png")):
        comment = exif_of(name)[USER_COMMENT]
        assert comment[:8] == b"UNICODE\0"
        assert comment[8:].decode("utf-16-be") == Image.open(png).text["parameters"]
        assert Image.open(name).getexif()[0x0131].startswith("tfsd")


@pytest.mark.parametrize("ending", [".jpg", ".webp", ".png"])
def test_same_picture_and_recipe_are_the_same_bytes(ending):
    first, second = (encode(pictures().pil(0), recipe(), ending) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("ending", [".jpg", ".webp"])
def test_higher_quality_is_larger_and_closer(ending):
    images = pictures(1, 64, 64)
    files = [encode(images.pil(0), recipe(), ending, quality=quality) for quality in (20, 95)]
    errors = [np.abs(np.asarray(Image.open(io.BytesIO(f)), int) - np.asarray(images, int)[0]).mean() for f in files]
    assert len(files[0]) < len(files[1]) and errors[0] > errors[1]
    assert files[1] == encode(images.pil(0), recipe(), ending)  # 95 is the default


@pytest.mark.parametrize(
    ("name", "quality", "error", "message"),
    [
        ("a.png", 90, ValueError, "quality must be None for a .png file"),
        ("a.jpg", 0, ValueError, "quality must be from 1 to 100; got 0"),
        ("a.webp", 101, ValueError, "quality must be from 1 to 100; got 101"),
        ("a.webp", "high", TypeError, "quality must be a whole number; got 'high'"),
    ],
)
def test_quality_that_does_not_fit_is_refused(tmp_path, name, quality, error, message):
    for call in (pictures().save, pictures().save_grid):
        with pytest.raises(error, match=message):
            call(tmp_path / name, quality=quality)
    assert not list(tmp_path.iterdir())


def test_the_contents_tell_the_format_and_not_the_name(tmp_path):
    path = tmp_path / "picture.png"
    for ending in (".jpg", ".webp", ".png"):
        path.write_bytes(encode(pictures().pil(0), recipe(), ending))
        assert read_recipe(path) == recipe()


def test_a_recipe_with_no_room_in_jpeg_is_refused_and_fits_in_webp(tmp_path):
    long = "".join(chr(0x4E00 + i * 7919 % 20000) for i in range(40_000))  # 80 KB of UTF-16
    images = Images(pictures(), [recipe(prompt=long)])
    with pytest.raises(ImageFileError, match=r"A \.jpg file has room for 65533 bytes of texts; .* Use \.png"):
        images.save(tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())
    assert read_recipe(images.save(tmp_path / "a.webp")[0])["prompt"] == long


@pytest.mark.parametrize("ending, side", [(".webp", 16384), (".jpg", 65501)])
def test_a_picture_too_wide_for_the_format_is_refused(ending, side):
    with pytest.raises(ImageFileError, match=rf"at most {side - 1} pixels a side; got {side}. Use .png"):
        encode(Image.new("RGB", (side, 1)), recipe(), ending)


# -- untrusted files ---------------------------------------------------------------------------------------------------


def tiff(entries: list[tuple[int, int, bytes]], order=">") -> bytes:
    """An EXIF block whose inner directory has entries (tag, kind, data), written by itself as a reference."""
    head = {">": b"MM\0*", "<": b"II*\0"}[order] + struct.pack(order + "I", 8)
    main = struct.pack(order + "HHHIII", 1, 0x8769, 4, 1, 26, 0)
    place, fields, values = 26 + 2 + 12 * len(entries) + 4, b"", b""
    for tag, kind, data in entries:
        fields += struct.pack(order + "HHII", tag, kind, len(data), place + len(values))
        values += data
    return head + main + struct.pack(order + "H", len(entries)) + fields + struct.pack(order + "I", 0) + values


def jpeg(*segments: bytes) -> bytes:
    return b"\xff\xd8" + b"".join(segments) + b"\xff\xda\0\2pixels\xff\xd9"


def app1(block: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", 2 + 6 + len(block)) + b"Exif\0\0" + block


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def note(text: bytes) -> bytes:
    return b"tfsd\0" + zlib.compress(text)


@pytest.mark.parametrize("order", [">", "<"])
def test_recipes_are_found_in_either_byte_order_behind_other_data(tmp_path, order):
    block = tiff([(MAKER_NOTE, 7, note(b'{"seed": 3}'))], order)
    path = tmp_path / "a"
    for data in (
        jpeg(b"\xff\xe0\0\4ab", b"\xff\xff" + app1(block)[1:]),
        jpeg(app1(tiff([])), app1(block)),
        webp((b"VP8X", b"odd"), (b"EXIF", block)),
        webp((b"EXIF", b"Exif\0\0" + block)),
    ):
        path.write_bytes(data)
        assert read_recipe(path) == {"seed": 3}


@pytest.mark.parametrize(
    "data, message",
    [
        (jpeg(), "has no recipe"),
        (webp((b"VP8 ", b"x")), "has no recipe"),
        (jpeg(app1(tiff([(MAKER_NOTE, 7, b"of another maker")]))), "has no recipe"),
        (b"\xff\xd8\xff\xe1\xff\xffExif\0\0", "ends too early"),
        (b"\xff\xd8" + b"\xff\xe0\0\2" * 20_000, "more than 10000 segments"),
        (b"\xff\xd8\xff\xe0\0\0", "ends too early"),
        (b"\xff\xd8not a marker", "ends too early"),
        (webp((b"EXIF", b"xx"))[:-1], "ends too early"),
        (webp(*[(b"ABCD", b"")] * 20_000), "more than 10000 chunks"),
        (jpeg(app1(b"XX*\0")), "incomplete"),
        (jpeg(app1(tiff([(MAKER_NOTE, 7, note(b"{}"))])[:30])), "incomplete"),
        (jpeg(app1(tiff([(MAKER_NOTE, 7, note(b'{"seed": 3}'))])[:-1])), "incomplete"),
        (jpeg(app1(b"MM\0*\xff\xff\xff\xff")), "incomplete"),
        (jpeg(app1(tiff([(MAKER_NOTE, 7, b"tfsd\0not packed")]))), "cannot be unpacked"),
        (jpeg(app1(tiff([(MAKER_NOTE, 7, note(b"{}")[:-1])]))), "cannot be unpacked"),
        (jpeg(app1(tiff([(MAKER_NOTE, 7, note(b'"\xff"'))]))), "cannot be unpacked"),
        (jpeg(app1(tiff([(MAKER_NOTE, 7, note(b" " * 2**25))]))), "more than 4194304 bytes"),
        (jpeg(app1(tiff([(MAKER_NOTE, 7, note(b'{"seed": NaN}'))]))), "not JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_without_a_sound_recipe_are_refused(tmp_path, data, message):
    path = tmp_path / "a"
    path.write_bytes(data)
    with pytest.raises(ImageFileError) as error:
        read_recipe(path)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("ending", [".jpg", ".webp"])
def test_file_cut_short_anywhere_is_refused(tmp_path, ending):
    whole, path = encode(smooth().pil(0), recipe(), ending), tmp_path / "cut"
    for length in [*range(0, len(whole), 97), len(whole) - 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ImageFileError, match="ends too early|not a PNG, JPEG or WebP"):
            read_recipe(path)
    path.write_bytes(whole + b"appended by another program")
    assert read_recipe(path) == recipe()


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_whole_files_of_other_encoders_are_not_refused(tmp_path, options):
    """Progressive files have tables between their scans, and others have markers in them."""
    block = encode(smooth().pil(0), recipe(), ".jpg")
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (200, 300, 3)).astype("uint8")).save(
        tmp_path / "a.jpg", exif=Image.open(io.BytesIO(block)).info["exif"], **options
    )
    assert read_recipe(tmp_path / "a.jpg") == recipe()


@pytest.mark.parametrize("ending", [".jpg", ".webp"])
def test_damaged_files_give_their_recipe_or_a_clear_error(tmp_path, ending):
    whole = encode(pictures().pil(0), recipe(), ending)
    random, path = np.random.RandomState(0), tmp_path / "damaged"
    outcomes = set()
    for i in range(300):
        damaged = bytearray(whole)
        for place in random.randint(0, len(whole), 2):
            damaged[place] ^= 1 << random.randint(8)
        path.write_bytes(damaged if i % 3 else damaged[: random.randint(len(whole))])
        try:
            outcomes.add(read_recipe(path) == recipe())
        except ImageFileError:
            outcomes.add("refused")
    assert outcomes == {True, "refused"}  # never another recipe: a checksum is over it
