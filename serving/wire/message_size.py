"""How large requests can be, by what exports say of themselves."""

import os
from collections.abc import Iterable
from pathlib import Path

WARMUP = "assets.extra/tf_serving_warmup_requests"  # a TFRecord file with one request for every signature, size and batch
LEAST = 4 * 2**20  # bytes, gRPC's own default; thousands of prompts are less
_ROOM = 1.25  # times the bytes of tensor_content: other clients write each value as a field
_MOST = 2**31 - 1  # that gRPC can receive
_JSON_ROOM = 6  # times the bytes of a float32: its digits as text


def request_limits(folders: Iterable[Path]) -> tuple[int, int]:
    """Returns the most bytes of a gRPC request and of an HTTP body that the exports in `folders` take, at least `LEAST`.

    An export's warm-up file holds a request of full size for each of its signatures.
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
                if left < 0:  # damage, which is found and told when the version is loaded
                    return []
                lengths.append(length)
                file.seek(length + 4, os.SEEK_CUR)
    except OSError:
        return []
    return lengths
