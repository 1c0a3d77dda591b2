import io
import subprocess
import sys
from pathlib import Path

import pytest

from tfsd.converters import IMPORTERS, convert
from tfsd.converters.importers.sources import KINDS, detect
from tfsd.errors import CheckpointError
from tfsd.specs import SD_1_4
from tfsd.storage.model_folders import load_spec

ROOT = Path(__file__).parents[2]


def test_every_importer_can_be_detected():
    assert set(IMPORTERS) == set(KINDS)


def test_the_kind_of_a_source_is_found(sd1, tmp_path):
    assert detect(sd1) == "diffusers"
    for name in KINDS["kerascv"]:
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).touch()
        assert detect(folder) == "kerascv"


@pytest.mark.parametrize("make", [True, False])
def test_an_unknown_source_says_what_is_looked_for(tmp_path, make):
    src = tmp_path / "src"
    if make:
        src.mkdir()
    with pytest.raises(CheckpointError, match=r"diffusers: model_index\.json; kerascv: kcv_encoder\.h5 or"):
        convert(src, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_numerics_name_and_dtype_are_chosen(sd1, tmp_path):
    model = convert(sd1, tmp_path / "x", numerics="kerascv", name="mine", dtype="bfloat16")
    spec = load_spec(model)
    assert (spec.name, spec.numerics, spec.vae.norm_epsilon) == ("mine", "kerascv", 1e-5)
    assert (model / "unet.weights.h5").stat().st_size < 0.9 * (sd1 / "unet/diffusion_pytorch_model.safetensors").stat().st_size


def test_an_existing_folder_is_kept(sd1, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "letter.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="not empty"):
            convert(sd1, tmp_path / "x", overwrite=overwrite)
    assert [f.name for f in (tmp_path / "x").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("options", [{"kind": "ckpt"}, {"dtype": "int8"}, {"numerics": "exact"}])
def test_a_wrong_argument_is_refused(sd1, tmp_path, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must be one of"):
        convert(sd1, tmp_path / "x", **options)


def test_options_of_the_other_kind_are_refused(sd1, tmp_path):
    with pytest.raises(ValueError, match="leave spec out"):
        convert(sd1, tmp_path / "x", spec=SD_1_4)
    with pytest.raises(ValueError, match="Only diffusers folders have variants"):
        convert(sd1, tmp_path / "x", kind="kerascv", variant="fp16")


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_on_request(terminal, sd1, tmp_path, monkeypatch):
    errors = io.StringIO()
    errors.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", errors)
    convert(sd1, tmp_path / "quiet")
    assert errors.getvalue() == ""
    convert(sd1, tmp_path / "loud", progress=True)
    assert ("writing loud: 100%" in errors.getvalue()) == terminal


def test_importing_the_converters_loads_no_tensorflow():
    code = "import sys, converters; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0
