import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import pictures, recipe

from tfsd.images import ImageFileError, read_recipe
from tfsd.images.files import FileThereError, write_files

ROOT = Path(__file__).parents[1]


def chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
    return struct.pack(">I", len(data) if length is None else length) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, width=1, height=1) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0\1\2\3"))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def itxt(text: bytes, packed=False, key=b"tfsd") -> bytes:
    return chunk(b"iTXt", key + b"\0" + bytes([packed, 0]) + b"\0\0" + (zlib.compress(text, 9) if packed else text))


def refused(path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(ImageFileError) as error:
        read_recipe(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_when_one_of_several_new_names_is_taken_at_last_none_is_written(tmp_path, monkeypatch):
    def taken(path):
        if path.name == "out-1.png":
            path.write_bytes(b"of another")

    data = {tmp_path / f"out-{i}.png": b"ours" for i in range(3)}
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (taken(tmp_path / "out-1.png"), sync(file)))  # while ours are written
    with pytest.raises(FileThereError, match=r"out-1\.png exists"):
        write_files(data, overwrite=False)
    assert os.listdir(tmp_path) == ["out-1.png"] and (tmp_path / "out-1.png").read_bytes() == b"of another"


def test_recipe_is_found_packed_and_behind_the_pixels(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(itxt(b'{"seed": 3}', packed=True)))
    assert read_recipe(path) == {"seed": 3}
    path.write_bytes(png()[:-12] + itxt(b'{"seed": 4}') + chunk(b"IEND", b""))
    assert read_recipe(path) == {"seed": 4}


def test_pixels_are_not_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(itxt(b'{"seed": 3}'), width=2**31 - 1, height=2**31 - 1))
    assert read_recipe(path) == {"seed": 3}


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "not a PNG"),
        (b"GIF89a" + bytes(100), "not a PNG"),
        (png(), "has no recipe"),
        (png(itxt(b"{}", key=b"other")), "has no recipe"),
        (png(itxt(b"[1]")), "must be a JSON object"),
        (png(itxt(b"{")), "not JSON"),
        (png(itxt(b'{"seed": NaN}')), "not JSON"),
        (png(itxt(b'{"guidance_scale": 1e999}')), "not JSON (1e999 is not a number)"),
        (png(itxt(b'{"pictures": 3}')), "must be a list of recipes"),
        (png(itxt(b'{"pictures": [{}, 1]}')), "must be a list of recipes"),
        (png(itxt(b'{"a":' * 100_000)), "not JSON"),
        (png(itxt(b'{"seed": ' + b"9" * 100_000 + b"}")), "not JSON"),
        (png(itxt(b'"\xff"')), "cannot be unpacked"),
        (png(chunk(b"iTXt", b"tfsd\0\0")), "incomplete"),
        (png(chunk(b"iTXt", b"tfsd\0\1\0\0\0not packed")), "cannot be unpacked"),
        (png(itxt(b" " * 2**25, packed=True)), "more than"),
        (png(chunk(b"iTXt", b"tfsd\0", length=2**31 - 1)), "ends too early"),
        (png(chunk(b"iTXt", b"tfsd\0", length=1000)), "ends too early"),
        (png(itxt(b'{"seed": 3}')).replace(b"seed", b"sead"), "checksum"),
        (png(itxt(b'{"seed": 3}'))[:-12], "a.png is damaged: it ends too early. Download or copy it again"),
        (png(itxt(b'{"seed": 3}'))[:-14], "ends too early"),  # within the pixels, behind the recipe
        (png(itxt(b'{"seed": 3}'))[:-1], "ends too early"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_without_a_sound_recipe_are_refused(tmp_path, data, message):
    assert message in refused(tmp_path / "a.png", data)


def test_packed_text_is_not_unpacked_beyond_its_limit(tmp_path):
    """32 MB of spaces in 32 KB."""
    path = tmp_path / "bomb.png"
    path.write_bytes(png(itxt(b" " * 2**25, packed=True)))
    script = f"""
import resource
from tfsd.images import ImageFileError, read_recipe
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_recipe({str(path)!r})
except ImageFileError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert int(grown) < 16 * 1024  # KB; 4 MB are unpacked before it stops


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path, tmp_path / "pipe.png", tmp_path / "missing.png", "zero\0.png", Path("/dev/zero")):
        with pytest.raises(ImageFileError):
            read_recipe(path)


def test_file_cut_short_anywhere_before_its_pixels_is_refused(tmp_path):
    whole = pictures().save(tmp_path / "whole.png")[0].read_bytes()
    end = whole.index(b'"guidance_scale": 7.5}')
    for length in range(0, end, 7):
        refused(tmp_path / "cut.png", whole[:length])


def test_damaged_files_give_their_recipe_or_a_clear_error(tmp_path):
    whole = pictures().save(tmp_path / "whole.png")[0].read_bytes()
    random, path = np.random.RandomState(0), tmp_path / "damaged.png"
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(whole)
        for place in random.randint(0, len(whole), 3):
            damaged[place] ^= 1 << random.randint(8)
        path.write_bytes(damaged)
        try:
            outcomes.add(read_recipe(path) == recipe())
        except ImageFileError:
            outcomes.add("refused")
    assert outcomes == {True, "refused"}  # never another recipe: a checksum is over it
