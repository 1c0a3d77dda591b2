import json
import shutil
from pathlib import Path

from command_line import made, one_line

DATA = Path(__file__).parents[1] / "data"


def test_models_lists_what_can_be_named(place, run):
    status, out, _ = run("models")
    assert status == 0 and "sd-1.4" in out and "not downloaded" in out
    entries = {entry["name"]: entry for entry in json.loads(run("models", "--json")[1])}
    assert entries["sd-1.4"]["licence"] == "CreativeML Open RAIL-M"


def test_converted_model_can_be_named(place, run):
    source = DATA / "diffusers/a_sd1"
    status, out, err = run("convert", source, "new", "--dtype", "float16", "--quiet")
    assert (status, out, err) == (0, "new\n", "")
    status, _, err = run("convert", source, "new", "--quiet")
    assert status == 1 and one_line(err) and "not empty" in err
    assert run("convert", source, "new", "--quiet", "--overwrite", "--name", "other")[0] == 0
    assert json.loads(Path("new/spec.json").read_text())["name"] == "other"


def test_source_that_is_damaged_leaves_no_model(place, run):
    shutil.copytree(DATA / "diffusers/a_sd1", "source")
    weights = Path("source/unet/diffusion_pytorch_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    status, _, err = run("convert", "source", "new", "--quiet")
    assert status == 1 and one_line(err)
    assert made(place) == ["source"]


def test_converted_model_has_the_sampler_that_was_named(place, run):
    source = DATA / "diffusers/a_sd1"
    status, out, err = run("convert", source, "new", "--quiet", "--sampler", "Eular a")
    assert status == 2 and one_line(err) and "Did you mean 'Euler a'" in err
    assert run("convert", source, "new", "--quiet", "--sampler", "Euler a") == (0, "new\n", "")
    assert json.loads(Path("new/spec.json").read_text())["default_sampler"] == "euler_ancestral"


def test_what_is_repaired_of_a_source_is_said_at_the_command_line(place, run):
    shutil.copytree(DATA / "diffusers/a_sd1", "source")
    path = Path("source/scheduler/scheduler_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"steps_offset": 0}))
    status, out, err = run("convert", "source", "new", "--quiet")
    assert (status, out) == (0, "new\n")
    assert err == f"tfsd: warning: {path}: steps_offset is 0, which is outdated; it is taken as 1, as diffusers does.\n"
