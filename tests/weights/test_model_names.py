import subprocess
import sys
from pathlib import Path

import pytest

from tfsd.errors import CheckpointError
from tfsd.storage.model_folders import list_models, resolve

ROOT = Path(__file__).parents[2]


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
    with pytest.raises(CheckpointError, match=r"sd-1\.4|not a model folder") as caught:
        resolve(model)
    assert "\n" not in str(caught.value)


def test_listing_models_loads_no_tensorflow():
    code = "import sys; from tfsd.storage.model_folders import list_models; list_models(); sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0
