import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from tfsd import models
from tfsd.h5 import CheckpointError
from tfsd.specs import CLIPSpec, ModelSpec, UNetSpec, VAESpec
from tfsd.weights import (
    list_models,
    load_model,
    load_parts,
    load_spec,
    load_weights,
    named_variables,
    resolve,
    save_model,
    write_model,
)

SPEC = ModelSpec(
    name="small",
    text=CLIPSpec(vocabulary=40, length=8, width=8, layers=1, heads=2, mlp_width=16),
    denoiser=UNetSpec(
        channels=(8, 16), residuals=1, attention=(False, True), heads=(2, 2), context_width=8, groups=4, transformer_layers=2
    ),
    vae=VAESpec(channels=(8, 16), residuals=1, groups=4),
    licence="MIT",
)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def parts():
    built = models.build(SPEC)
    random = np.random.default_rng(0)
    for part in built.values():
        for variable in part.variables:
            variable.assign(random.normal(size=variable.shape).astype("float32"))
    return built


@pytest.fixture(scope="module")
def saved(parts, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "small", SPEC, parts, notes={"loss": 0.5})


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may damage."""
    copy = tmp_path / "small"
    copy.mkdir()
    for file in saved.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def values(part) -> dict[str, np.ndarray]:
    return {path: np.asarray(variable) for path, variable in named_variables(part).items()}


def assert_same(left, right):
    left, right = values(left), values(right)
    assert list(left) == list(right)
    for path in left:
        np.testing.assert_array_equal(left[path], right[path], err_msg=path)


def edit(path: Path, change):
    """Changes an h5 file and its entry in the manifest, as someone who means to deceive would."""
    import hashlib

    with h5py.File(path, "r+") as file:
        change(file)
    manifest = json.loads((path.parent / "manifest.json").read_text())
    data = path.read_bytes()
    manifest["files"][path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (path.parent / "manifest.json").write_text(json.dumps(manifest))


def test_a_model_comes_back_as_it_was_saved(saved, parts):
    spec, loaded = load_model(saved)
    assert spec == SPEC
    assert set(loaded) == set(models.PARTS)
    for part in parts:
        assert_same(loaded[part], parts[part])


def test_the_manifest_records_what_was_saved(saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["dtype"] == "float32"
    assert manifest["licence"] == "MIT"
    assert manifest["notes"] == {"loss": 0.5}
    assert set(manifest["files"]) == {"spec.json", *(f"{part}.weights.h5" for part in models.PARTS)}
    for name, entry in manifest["files"].items():
        assert (saved / name).stat().st_size == entry["bytes"]


def test_files_are_little_larger_than_their_values(saved, parts):
    """The embedded model has hundreds of small tensors; HDF5's oldest format adds 1700 bytes to each."""
    tensors = [variable for part in parts.values() for variable in part.variables]
    stored = sum(f.stat().st_size for f in saved.glob("*.h5"))
    assert stored - sum(np.asarray(v).nbytes for v in tensors) < 700 * len(tensors)


@pytest.mark.parametrize("part", models.PARTS)
def test_keras_reads_our_files(saved, parts, part):
    fresh = models.build(SPEC, parts=(part,))[part]
    fresh.load_weights(saved / f"{part}.weights.h5")
    assert_same(fresh, parts[part])


@pytest.mark.parametrize("part", models.PARTS)
def test_we_read_files_of_keras(parts, tmp_path, part):
    parts[part].save_weights(tmp_path / "keras.weights.h5")
    fresh = models.build(SPEC, parts=(part,))[part]
    load_weights(tmp_path / "keras.weights.h5", fresh)
    assert_same(fresh, parts[part])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_hold_the_rounded_values(parts, tmp_path, dtype):
    folder = save_model(tmp_path / dtype, SPEC, parts, dtype=dtype)
    assert json.loads((folder / "manifest.json").read_text())["dtype"] == dtype
    _, loaded = load_model(folder, parts=("text_encoder",))
    for path, expected in values(parts["text_encoder"]).items():
        rounded = expected.astype(np.dtype(dtype)).astype("float32")
        np.testing.assert_array_equal(values(loaded["text_encoder"])[path], rounded, err_msg=path)
    sizes = [sum(f.stat().st_size for f in place.glob("unet*")) for place in (folder, folder.parent / dtype)]
    assert sizes[0] == sizes[1]


def test_keras_reads_our_bfloat16_files(parts, tmp_path):
    folder = save_model(tmp_path / "bf16", SPEC, {"decoder": parts["decoder"]}, dtype="bfloat16")
    fresh = models.build(SPEC, dtype="bfloat16", parts=("decoder",))["decoder"]
    fresh.load_weights(folder / "decoder.weights.h5")
    _, loaded = load_model(folder, parts=("decoder",), dtype="bfloat16")
    assert_same(fresh, loaded["decoder"])


def test_loading_in_half_precision_rounds_float32_files(saved, parts):
    loaded = load_parts(saved, SPEC, parts=("decoder",), dtype="float16")["decoder"]
    for path, expected in values(parts["decoder"]).items():
        np.testing.assert_array_equal(values(loaded)[path], expected.astype("float16"), err_msg=path)


def test_a_truncated_file_is_named(folder):
    file = folder / "unet.weights.h5"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"unet\.weights\.h5 is damaged: it has \d+ bytes instead of \d+"):
        load_model(folder)


@pytest.mark.parametrize("name", ["unet.weights.h5", "spec.json"])
def test_a_flipped_bit_is_found(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged: its SHA-256"):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 7, 100, 3000])
def test_a_truncated_file_is_refused_without_its_hash_too(folder, keep):
    file = folder / "decoder.weights.h5"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"decoder\.weights\.h5 is damaged or no HDF5 file"):
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
        load_model(folder, parts=("text_encoder",))


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
        load_model(folder)


def test_values_that_float16_cannot_hold_are_refused_and_nothing_is_left(tmp_path):
    shapes = models.variable_shapes(SPEC, ("decoder",))["decoder"]
    tensors = ((path, np.full(shape, 70000.0, "float32")) for path, shape in shapes.items())
    with pytest.raises(CheckpointError, match="decoder/post_quant/kernel are too large for float16"):
        write_model(tmp_path / "x", SPEC, {"decoder": tensors}, dtype="float16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["missing", "unknown", "twice", "shape", "interrupt"])
def test_a_failed_save_leaves_nothing(tmp_path, fault):
    shapes = models.variable_shapes(SPEC, ("decoder",))["decoder"]

    def stream():
        for i, (path, shape) in enumerate(shapes.items()):
            if i == 5 and fault == "missing":
                continue
            if i == 5 and fault == "interrupt":
                raise KeyboardInterrupt
            yield ("nothing" if i == 5 and fault == "unknown" else path), np.zeros(shape if (i, fault) != (5, "shape") else (77,))
            if i == 5 and fault == "twice":
                yield path, np.zeros(shape)

    with pytest.raises(KeyboardInterrupt if fault == "interrupt" else CheckpointError):
        write_model(tmp_path / "x", SPEC, {"decoder": stream()})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_model_is_kept_unless_overwritten(folder, parts):
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        save_model(folder, SPEC, parts)
    with pytest.raises(CheckpointError):
        write_model(folder, SPEC, {"decoder": iter(())}, overwrite=True)
    assert (folder / "manifest.json").read_bytes() == before
    save_model(folder, SPEC, {"decoder": parts["decoder"]}, overwrite=True)
    assert sorted(f.name for f in folder.iterdir()) == ["decoder.weights.h5", "manifest.json", "spec.json"]
    assert sorted(f.name for f in folder.parent.iterdir()) == ["small"]


def test_a_folder_of_other_things_is_never_overwritten(tmp_path, parts):
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(CheckpointError, match="no model folder, so it is not replaced"):
        save_model(tmp_path, SPEC, parts, overwrite=True)
    assert (tmp_path / "diary.txt").read_text() == "dear diary"


FULL_DISK = """
import resource, sys
sys.path.insert(0, {tests!r})
from test_weights import SPEC
from tfsd import models
from tfsd.weights import CheckpointError, save_model
parts = models.build(SPEC, parts=("text_encoder", "decoder"))
for limit in (100_000, 10):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        save_model({folder!r}, SPEC, parts)
    except CheckpointError as error:
        print(error)
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    """In a process of its own: a write that fails inside HDF5 crashes Python at exit. A file size limit is the disk."""
    code = FULL_DISK.format(tests=str(ROOT / "tests"), folder=str(tmp_path / "x"))
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [f"{tmp_path / 'x'} cannot be written: File too large."] * 2
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_a_folder_is_one_line(tmp_path, parts):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        save_model(tmp_path / "file", SPEC, parts)
    with pytest.raises(CheckpointError, match="cannot be written: "):
        save_model(tmp_path / "file" / "below", SPEC, parts)


def test_a_wrong_part_or_dtype_is_refused(saved, parts, tmp_path):
    with pytest.raises(ValueError, match="parts are text_encoder, unet, decoder, encoder; got 'vae'"):
        load_model(saved, parts=("vae",))
    with pytest.raises(ValueError, match="dtype must be one of .* got 'int8'"):
        save_model(tmp_path / "x", SPEC, parts, dtype="int8")


def test_names_resolve_to_folders(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("TFSD_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(saved)
    assert resolve("mine") == tmp_path / "models" / "mine"
    assert resolve(saved) == saved
    assert resolve(str(saved)) == saved
    entry = {entry.name: entry for entry in list_models()}["mine"]
    assert (entry.state, entry.licence) == ("downloaded", "MIT")
    assert entry.bytes == sum(f.stat().st_size for f in saved.iterdir())


def test_a_preset_that_is_not_downloaded_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TFSD_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"`tfsd download sd-1\.4 --accept-licence`"):
        resolve("sd-1.4")
    assert ("sd-1.4", "not downloaded") in [(entry.name, entry.state) for entry in list_models()]


@pytest.mark.parametrize("model", ["sd-9", "", "no/such/folder", "../x\n", Path("nowhere")])
def test_an_unknown_model_lists_what_exists(tmp_path, monkeypatch, model):
    monkeypatch.setenv("TFSD_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"sd-1\.4|no model folder") as caught:
        resolve(model)
    assert "\n" not in str(caught.value)


def test_listing_models_loads_no_tensorflow():
    code = "import sys; from tfsd.weights import list_models; list_models(); sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0


def test_loading_holds_one_tensor_at_a_time(tmp_path):
    """A part of 64 MB in 8 MB tensors: loading may add less than three of them to the model itself."""
    spec = ModelSpec(name="wide", text=CLIPSpec(vocabulary=1000, width=512, heads=8, layers=7, mlp_width=1024))
    built = models.build(spec, parts=("text_encoder",))
    folder = save_model(tmp_path / "wide", spec, built)
    largest = max(np.asarray(v).nbytes for v in built["text_encoder"].variables)
    code = (
        "import resource, sys; from tfsd import models; from tfsd.weights import load_spec, load_weights\n"
        f"spec = load_spec({str(folder)!r}); part = models.build(spec, parts=('text_encoder',))['text_encoder']\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"load_weights({str(folder / 'text_encoder.weights.h5')!r}, part)\n"
        "print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))"
    )
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert int(ran.stdout) < 3 * largest + 8 * 2**20, ran.stderr
