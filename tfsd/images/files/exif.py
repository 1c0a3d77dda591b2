"""The texts in JPEG and WebP files, in EXIF: writing them, and reading them from untrusted files without decoding pixels.

Two tags of EXIF hold them: UserComment the readable text, as other image generators write it there, and MakerNote, which
the standard leaves to whoever made the image, the recipe as packed JSON.
Source: EXIF 2.32, JPEG (ITU T.81, annex B), WebP's container specification.
"""

import os
import struct
import zlib
from collections.abc import Collection, Iterator
from typing import BinaryIO

from tfsd.images.files.limits import MAX_TEXT, FilePath, unpacked
from tfsd.images.files.writing import ImageFileError

JPEG_SIGNATURE = b"\xff\xd8"
_JPEG_END, _JPEG_PIXELS = b"\xff\xd9", b"\xff\xda"
PREFIX = b"Exif\0\0"  # of an EXIF block in JPEG files
_MAX_EXIF = 3 * MAX_TEXT  # bytes; the readable text is UTF-16
_MAX_SEGMENTS = 10_000
_EXIF_IFD, _MAKER_NOTE, _USER_COMMENT, _SOFTWARE = 0x8769, 0x927C, 0x9286, 0x0131
_LONG, _ASCII, _UNDEFINED = 4, 2, 7
_NOTE = b"tfsd\0"  # how our MakerNote begins


def exif_block(recipe: str, readable: str, software: str) -> bytes:
    """Returns an EXIF block with these texts: big-endian, as is the UTF-16 of `readable` which other programs expect."""
    note = _NOTE + zlib.compress(recipe.encode("utf-8"), 9)
    comment = b"UNICODE\0" + readable.encode("utf-16-be")
    inner_at = 8 + _directory_size(2)
    software_data = software.encode("ascii", "replace") + b"\0"
    inner_at += len(software_data) + len(software_data) % 2
    main = _directory(8, [(_SOFTWARE, _ASCII, software_data), (_EXIF_IFD, _LONG, struct.pack(">I", inner_at))])
    inner = _directory(inner_at, [(_MAKER_NOTE, _UNDEFINED, note), (_USER_COMMENT, _UNDEFINED, comment)])
    return PREFIX + b"MM\0*" + struct.pack(">I", 8) + main + inner


def _directory_size(count: int) -> int:
    return 2 + 12 * count + 4


def _directory(start: int, entries: list[tuple[int, int, bytes]]) -> bytes:
    """Returns a directory of EXIF that lies at `start`, and behind it the values that are too long to lie in it."""
    head, values = struct.pack(">H", len(entries)), b""
    for tag, kind, data in entries:
        count = len(data) // 4 if kind == _LONG else len(data)
        if len(data) <= 4:
            place = data.ljust(4, b"\0")
        else:
            place = struct.pack(">I", start + _directory_size(len(entries)) + len(values))
            values += data + b"\0" * (len(data) % 2)
        head += struct.pack(">HHI", tag, kind, count) + place
    return head + struct.pack(">I", 0) + values


def read_texts(file: BinaryIO, path: FilePath, keys: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yields (key, text) of a JPEG or WebP file: "tfsd", the recipe, and "parameters", as far as they are in `keys`.

    Raises: `ImageFileError` for a damaged file or text.
    """
    blocks = _jpeg_blocks if file.read(2) == JPEG_SIGNATURE else _webp_blocks
    for block in blocks(file, path):
        tags = _tags(block.removeprefix(PREFIX), path)
        note, comment = tags.get(_MAKER_NOTE, b""), tags.get(_USER_COMMENT, b"")
        if "tfsd" in keys and note.startswith(_NOTE):
            yield "tfsd", _decoded(unpacked(note.removeprefix(_NOTE), path), path)
        if "parameters" in keys and comment:
            yield "parameters", _comment_text(comment)


def require_whole(file: BinaryIO, path: FilePath) -> None:
    """Raises `ImageFileError` if a JPEG or WebP file was cut short, wherever that is; the pixels are not decoded.

    A WebP file begins with its length. A JPEG file ends with a marker that its pixels, as they are coded, cannot contain.
    """
    start = file.read(8)
    if start.startswith(JPEG_SIGNATURE):
        file.seek(len(JPEG_SIGNATURE))
        for _ in _jpeg_blocks(file, path):
            pass
        last = b""
        while (block := file.read(2**16)) and _JPEG_END not in last + block:
            last = block[-1:]
        complete = bool(block)
    else:
        length = int.from_bytes(start[4:], "little")
        complete = file.seek(0, os.SEEK_END) >= len(start) + length
    if not complete:
        raise ImageFileError(f"{path} is damaged: it ends too early. Download or copy it again.")


def _jpeg_blocks(file: BinaryIO, path: FilePath) -> Iterator[bytes]:
    """Yields the EXIF blocks among a JPEG file's segments, up to the pixels or the end marker, which are not read."""
    for _ in range(_MAX_SEGMENTS):
        head = file.read(2)
        while head == b"\xff\xff":  # padding between segments
            head = b"\xff" + file.read(1)
        if len(head) == 2 and (head == b"\xff\x01" or 0xD0 <= head[1] <= 0xD7):  # no length, no data
            continue
        if head in (_JPEG_END, _JPEG_PIXELS):
            file.seek(-len(head), os.SEEK_CUR)
            return
        size = file.read(2)
        if len(size) < 2 or head[0] != 0xFF or (length := int.from_bytes(size, "big") - 2) < 0:
            raise ImageFileError(f"{path} is damaged: it ends too early.")
        data = file.read(length)  # at most 64 KB
        if len(data) < length:
            raise ImageFileError(f"{path} is damaged: it ends too early.")
        if head == b"\xff\xe1" and data.startswith(PREFIX):
            yield data
    raise ImageFileError(f"{path} has more than {_MAX_SEGMENTS} segments.")


def _webp_blocks(file: BinaryIO, path: FilePath) -> Iterator[bytes]:
    """Yields the EXIF chunks of a WebP file."""
    file.seek(12)
    for _ in range(_MAX_SEGMENTS):
        head = file.read(8)
        if not head:
            return
        if len(head) < 8:
            raise ImageFileError(f"{path} is damaged: it ends too early.")
        kind, length = struct.unpack("<4sI", head)
        if kind != b"EXIF" or length > _MAX_EXIF:
            file.seek(length + length % 2, os.SEEK_CUR)
            continue
        data = file.read(length)
        if len(data) < length:
            raise ImageFileError(f"{path} is damaged: it ends too early.")
        file.seek(length % 2, os.SEEK_CUR)
        yield data
    raise ImageFileError(f"{path} has more than {_MAX_SEGMENTS} chunks.")


def _tags(block: bytes, path: FilePath) -> dict[int, bytes]:
    """Returns the values of one byte per item in an EXIF block's inner directory, by their tags."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        raise ImageFileError(f"{path} is damaged: its EXIF data is incomplete.")
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        inner = next((place for tag, _, _, place in _entries(block, start, order) if tag == _EXIF_IFD), None)
        if inner is None:
            return {}
        tags = {}
        for tag, kind, count, place in _entries(block, struct.unpack(order + "I", inner)[0], order):
            if kind == _UNDEFINED and tag in (_MAKER_NOTE, _USER_COMMENT):
                (at,) = struct.unpack(order + "I", place)
                tags[tag] = place[:count] if count <= 4 else block[at : at + count]
                if len(tags[tag]) < count:
                    raise ImageFileError(f"{path} is damaged: its EXIF data is incomplete.")
    except struct.error as error:
        raise ImageFileError(f"{path} is damaged: its EXIF data is incomplete.") from error
    return tags


def _entries(block: bytes, start: int, order: str) -> Iterator[tuple[int, int, int, bytes]]:
    (count,) = struct.unpack_from(order + "H", block, start)
    for i in range(count):
        yield struct.unpack_from(order + "HHI4s", block, start + 2 + 12 * i)


def _comment_text(comment: bytes) -> str:
    """Returns the text of a UserComment, whose first eight bytes name its encoding."""
    code, data = comment[:8], comment[8:]
    if len(data) > 2 * MAX_TEXT:
        data = data[: 2 * MAX_TEXT]
    if code != b"UNICODE\0":
        return data.decode("utf-8", "replace").rstrip("\0")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    # Programs disagree about the order of bytes. Latin letters have a zero as their high byte.
    little = data[1::2].count(0) > data[0::2].count(0)
    return data.decode("utf-16-le" if little else "utf-16-be", "replace").rstrip("\0")


def _decoded(data: bytes, path: FilePath) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ImageFileError(f"{path} is damaged: a text in it cannot be unpacked ({error}).") from error
