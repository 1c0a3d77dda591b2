"""The largest requests that exports can take, read from their warm-up files."""

import os
from collections.abc import Iterable
from pathlib import Path

WARMUP = "assets.extra/tf_serving_warmup_requests"  # a TFRecord file with one request for every signature, size and batch
LEAST = 4 * 2**20  # bytes, gRPC's default; enough for thousands of prompts
_ROOM = 1.25  # times the bytes of tensor_content, since other clients write each value as a field
_MOST = 2**31 - 1  # bytes that gRPC can receive
_JSON_ROOM = 6  # times the bytes of a float32, for its digits as text


def request_limits(folders: Iterable[Path]) -> tuple[int, int]:
    """Returns the largest gRPC request and HTTP body that the exports in `folders` take, in bytes, and at least `LEAST`.

    The warm-up file of an export has a request of full size for each signature.
    """
    largest = max((length for folder in folders for length in _record_lengths(folder / WARMUP)), default=0)
    message, body = (min(max(LEAST, int(room * largest)), _MOST) for room in (_ROOM, _JSON_ROOM))
    return message, body


def _record_lengths(path: Path) -> list[int]:
    """Returns the sizes of a TFRecord file's records: each is a length of 8 bytes, a checksum of 4, the data, a checksum of 4."""
    lengths = []
    try:
        with open(path, "rb") as file:
            left = os.fstat(file.fileno()).st_size
            while len(head := file.read(12)) == 12:
                length = int.from_bytes(head[:8], "little")
                left -= length + 16
                if left < 0:  # the file is damaged, which is reported when the version is loaded
                    return []
                lengths.append(length)
                file.seek(length + 4, os.SEEK_CUR)
    except OSError:
        return []
    return lengths
