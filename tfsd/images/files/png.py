"""The texts in PNG files: writing them, and reading them from untrusted files without decoding pixels."""

import os
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import BinaryIO

from PIL.PngImagePlugin import PngInfo

from tfsd.images.files.limits import MAX_TEXT, FilePath, unpacked
from tfsd.images.files.writing import ImageFileError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 1_000_000
_TEXT_KINDS = (b"iTXt", b"tEXt", b"zTXt")


def text_chunks(texts: Mapping[str, str]) -> PngInfo:
    """Returns texts as PIL takes them to write a PNG file: one iTXt chunk for each key."""
    info = PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    return info


def read_texts(file: BinaryIO, path: FilePath, keys: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yields (key, text) of the text chunks of `keys` in a PNG file; others are passed over, the pixels unread.

    Raises: `ImageFileError` for a damaged file or text.
    """
    if file.read(len(SIGNATURE)) != SIGNATURE:
        raise ImageFileError(f"{path} is not a PNG file.")
    for kind, data in _chunks(file, path):
        key, _, rest = data.partition(b"\0")
        if (name := key.decode("latin-1")) in keys:
            yield name, _text_of(kind, rest, path)


def require_whole(file: BinaryIO, path: FilePath) -> None:
    """Raises `ImageFileError` if a PNG file was cut short, wherever that is; by the lengths of its chunks, which are not read."""
    size = file.seek(0, os.SEEK_END)
    file.seek(len(SIGNATURE))
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        length, kind = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"")
        if not kind or file.seek(length + 4, os.SEEK_CUR) > size:
            raise ImageFileError(f"{path} is damaged: it ends too early. Download or copy it again.")
        if kind == b"IEND":
            return


def _chunks(file: BinaryIO, path: FilePath) -> Iterator[tuple[bytes, bytes]]:
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            raise ImageFileError(f"{path} is damaged: it ends too early.")
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            return
        if kind not in _TEXT_KINDS or length > MAX_TEXT + 256:
            file.seek(length + 4, os.SEEK_CUR)
            continue
        data, checksum = file.read(length), file.read(4)
        if len(checksum) < 4 or zlib.crc32(kind + data) != int.from_bytes(checksum, "big"):
            raise ImageFileError(f"{path} is damaged: a text in it fails its checksum.")
        yield kind, data
    raise ImageFileError(f"{path} has more than {_MAX_CHUNKS} chunks.")


def _text_of(kind: bytes, rest: bytes, path: FilePath) -> str:
    """Returns the text of a chunk after its key."""
    if kind == b"tEXt":
        return rest.decode("latin-1")
    if kind == b"zTXt":  # compression method, text
        return unpacked(rest[1:], path).decode("latin-1")
    parts = rest[2:].split(b"\0", 2)  # behind compression flag and method: language, translated key, text
    if len(rest) < 4 or len(parts) < 3:
        raise ImageFileError(f"{path} is damaged: a text in it is incomplete.")
    data = unpacked(parts[2], path) if rest[0] else parts[2]
    if len(data) > MAX_TEXT:
        raise ImageFileError(f"{path} has a text of more than {MAX_TEXT} bytes.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ImageFileError(f"{path} is damaged: a text in it cannot be unpacked ({error}).") from error
