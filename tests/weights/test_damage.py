import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from small_model import PARTS, SPEC, loaded

from tfsd import models
from tfsd.errors import CheckpointError
from tfsd.specs import PRESETS
from tfsd.storage.model_folders import load_parts, load_spec, load_weights


def edit(path: Path, change):
    """Changes an h5 file and its entry in the manifest, as someone who means to deceive would."""
    import hashlib

    with h5py.File(path, "r+") as file:
        change(file)
    manifest = json.loads((path.parent / "manifest.json").read_text())
    data = path.read_bytes()
    manifest["files"][path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (path.parent / "manifest.json").write_text(json.dumps(manifest))


def test_a_truncated_file_is_named(folder):
    file = folder / "unet.weights.h5"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"unet\.weights\.h5 is damaged: it has \d+ bytes instead of \d+"):
        loaded(folder)


@pytest.mark.parametrize("name", ["unet.weights.h5", "spec.json"])
def test_a_flipped_bit_is_found(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged: its SHA-256"):
        loaded(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, 3000])
def test_a_truncated_file_is_refused_without_its_hash_too(folder, keep):
    file = folder / "decoder.weights.h5"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"decoder\.weights\.h5 is damaged or not an HDF5 file"):
        load_parts(folder, SPEC, parts=("decoder",), verify=False)


def test_damage_never_escapes_as_another_error(folder):
    """200 files with ten flipped bits each: every one loads, or fails with one line."""
    file = folder / "text_encoder.weights.h5"
    whole, random = file.read_bytes(), np.random.default_rng(1)
    part, refused = models.build(SPEC, parts=("text_encoder",))["text_encoder"], 0
    for _ in range(200):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 10):
            data[place] ^= 1 << random.integers(8)
        file.write_bytes(data)
        try:
            load_weights(file, part)
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 20


def _delete(file):
    del file["norm/vars/1"]


def _add(file):
    file["norm/vars/2"] = np.zeros(3, "float32")


def _reshape(file):
    del file["norm/vars/0"]
    file["norm/vars/0"] = np.zeros(9, "float32")


def _integers(file):
    del file["norm/vars/0"]
    file["norm/vars/0"] = np.zeros(8, "int64")


def _compressed(file):
    del file["norm/vars/0"]
    file.create_dataset("norm/vars/0", data=np.zeros(8, "float32"), compression="gzip")


def _huge(file):
    del file["norm/vars/0"]
    file.create_dataset("norm/vars/0", shape=(10**13,), dtype="float32", chunks=(1024,))


def _hollow(file):
    del file["norm/vars/0"]
    file.create_dataset("norm/vars/0", shape=(8,), dtype="float32", chunks=(8,))


def _outside(file):
    del file["norm/vars/0"]
    file.create_dataset("norm/vars/0", shape=(8,), dtype="float32", external=[("/etc/hostname", 0, 32)])


def _link(file):
    del file["norm/vars/0"]
    file["norm/vars/0"] = h5py.ExternalLink("/etc/hostname", "/x")


def _cycle(file):
    for name in "abc":
        file["norm"][name] = file["/"]


def _not_a_number(file):
    file["norm/vars/0"][3] = np.nan


@pytest.mark.parametrize(
    "change, message",
    [
        (_delete, r"does not fit the text_encoder of small: 1 missing \(norm/beta\) tensors"),
        (_add, r"1 surplus \(norm/vars/2\) tensors"),
        (_reshape, r"1 misshapen \(norm/gamma \[9\] instead of \[8\]\) tensors"),
        (_integers, r"/norm/vars/0 must hold floats .* it holds int64"),
        (_compressed, r"/norm/vars/0 is compressed or stored elsewhere"),
        (_huge, r"1 misshapen \(norm/gamma \[10000000000000\] instead of \[8\]\)"),
        (_hollow, r"/norm/vars/0 has a shape but no values"),
        (_outside, r"/norm/vars/0 is compressed or stored elsewhere"),
        (_link, r"'0' is missing or a link to another place"),
        (_cycle, r"more than 100000 objects or 24 levels"),
        (_not_a_number, r"Values of norm/gamma in .* are NaN or infinite"),
    ],
)
def test_a_file_that_was_tampered_with_is_refused(folder, change, message):
    edit(folder / "text_encoder.weights.h5", change)
    with pytest.raises(CheckpointError, match=message):
        loaded(folder, parts=("text_encoder",))


def test_weights_of_another_model_are_refused(folder):
    edit(folder / "decoder.weights.h5", lambda file: None)
    (folder / "encoder.weights.h5").write_bytes((folder / "decoder.weights.h5").read_bytes())
    with pytest.raises(CheckpointError, match=r"does not fit the encoder of small: \d+ missing \(.*surplus"):
        load_parts(folder, SPEC, parts=("encoder",), verify=False)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"name": 3}', '{"name": "x", "colour": 1}', "[" * 100_000])
def test_a_bad_spec_is_one_line(folder, text):
    (folder / "spec.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"spec\.json") as caught:
        load_spec(folder, verify=False)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(folder):
    (folder / "unet.weights.h5").unlink()
    with pytest.raises(CheckpointError, match=r"has no unet\.weights\.h5"):
        loaded(folder)


@pytest.mark.parametrize("part", PARTS)
def test_a_spec_that_asks_for_far_more_than_the_file_holds_takes_no_memory(folder, part):
    large = {
        "text": (dataclasses.replace(SPEC.text[0], width=16384, mlp_width=65536, layers=200),),
        "denoiser": dataclasses.replace(SPEC.denoiser, channels=(16384,) * 2, groups=1),
        "vae": dataclasses.replace(SPEC.vae, channels=(16384,) * len(SPEC.vae.channels), groups=1),
    }
    spec = dataclasses.replace(SPEC, **large)
    with pytest.raises(CheckpointError, match=rf"{SPEC.parts((part,))[0].file} is too small for the {part} of small"):
        load_parts(folder, spec, parts=(part,))


@pytest.mark.parametrize("part", PARTS)
def test_the_least_that_a_part_can_hold_is_less_than_it_holds(part):
    for spec in (SPEC, PRESETS["sd-1.4"]):
        held = models.parameter_count(models.part_shapes(spec, (part,))[part])
        assert spec.parts((part,))[0].fewest_values < held
    assert spec.parts((part,))[0].fewest_values > 0.05 * held  # at full size
