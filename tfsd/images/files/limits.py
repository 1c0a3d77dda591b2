"""Limits on what is read from untrusted image files."""

import os
import zlib

from tfsd.images.files.writing import ImageFileError

FilePath = str | os.PathLike[str]
MAX_TEXT = 4 * 2**20  # bytes of UTF-8; a prompt has at most 64 KB, a grid many of them


def unpacked(data: bytes, path: FilePath) -> bytes:
    """Returns zlib's `data` unpacked; raises `ImageFileError` if it is damaged or has more than `MAX_TEXT` bytes."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, MAX_TEXT + 1)
    except zlib.error as error:
        raise ImageFileError(f"{path} is damaged: a text in it cannot be unpacked ({error}).") from error
    if len(text) > MAX_TEXT:
        raise ImageFileError(f"{path} has a text of more than {MAX_TEXT} bytes.")
    if not unpacker.eof:  # its checksum comes last
        raise ImageFileError(f"{path} is damaged: a text in it cannot be unpacked (it is incomplete).")
    return text
