"""`tfsd generate --server` against a server that does as it is told."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import one_line, start
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/serving"))

from patience import LONG, until  # noqa: E402
from scripted import Scripted, fails, hangs, picture, serving  # noqa: E402

from tfsd.images import read_recipe  # noqa: E402


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_pictures_of_a_server_are_files_as_those_made_here(folder, run):
    servicer = Scripted()
    with serving(servicer) as address:
        argv = "--seed 4 --index 2 --n 3 --batch 2 --steps 5 --scale 2.5 --sampler pndm --height 8 --width 24 --model other"
        status, out, err = run(
            "generate", "a red star", *argv.split(), "--negative", "red", "--server", address, "--out", "x.png"
        )
    assert (status, out, err) == (0, "x-0.png\nx-1.png\nx-2.png\n", "")
    for i in range(3):
        np.testing.assert_array_equal(np.asarray(Image.open(f"x-{i}.png")), picture(4, 2 + i, 8, 24))
    recipe = {
        "prompt": "a red star",
        "negative_prompt": "red",
        "seed": 4,
        "index": 4,
        "guidance_scale": 2.5,
        "num_steps": 5,
        "sampler": "pndm",
        "height": 8,
        "width": 24,
        "model": "other",
        "model_version": 3,
    }
    found = read_recipe("x-2.png")
    assert {name: found[name] for name in recipe} == recipe
    assert [len(inputs["prompt"]) for inputs in servicer.seen] == [2, 1]  # nothing is drawn to be thrown away
    assert servicer.metadata_calls == 1


def test_prompts_without_names_become_files_called_after_them(folder, run):
    with serving(Scripted()) as address:
        status, out, _ = run("a red star", "a cat", "--server", address)
    assert (status, out) == (0, "a-red-star.png\na-cat.png\n")


def test_grid_of_a_server_is_one_file(folder, run):
    with serving(Scripted()) as address:
        assert run("a", "--n", "3", "--grid", "--columns", "3", "--server", address, "--out", "g.png")[:2] == (0, "g.png\n")
    assert Image.open("g.png").size == (48, 8)
    assert [one["index"] for one in read_recipe("g.png")["pictures"]] == [0, 1, 2]


def test_command_that_show_prints_for_such_a_picture_has_all_that_is_drawn(folder, run):
    with serving(Scripted()) as address:
        run("a red star", "--seed", "7", "--server", address, "--out", "x.png")
    status, out, _ = run("show", "x.png")
    again = next(line for line in out.splitlines() if line.startswith("again:"))
    assert status == 0
    for option in ("--seed=7", "--steps=4", "--scale=3.0", "--sampler=ddim", "--height=8", "--width=16", "--model=tiny"):
        assert option in again


def test_cut_prompt_is_one_line_however_many_pictures(folder, run):
    with serving(Scripted()) as address:
        status, _, err = run("a xx", "--n", "3", "--batch", "1", "--server", address, "--out", "x.png")
    assert status == 0 and one_line(err)
    assert err.startswith("tfsd: warning: prompt 'a xx' is too long")


@pytest.mark.parametrize(
    "argv, message",
    [
        (("--dtype", "bfloat16", "--server", "localhost:1"), "--dtype cannot be given with --server"),
        (("--numerics", "kerascv", "--server", "localhost:1"), "--numerics cannot"),
        (("--no-jit", "--server", "localhost:1"), "--no-jit cannot"),
        (("--eta", "0.5", "--server", "localhost:1"), "--eta cannot"),
        (("--server", "localhost"), "HOST:PORT"),
        (("--server", "http://localhost:8501"), "HOST:PORT"),
        (("--timeout", "5"), "--timeout requires --server"),
        (("--token-file", "x"), "--token-file requires --server"),
        (("--tls-ca", "x"), "--tls-ca requires --server"),
        (("--server", "localhost:1", "--timeout", "0"), "--timeout"),
        (("--server", "localhost:1", "--sampler", "dimm"), "Did you mean 'ddim'"),
        (("--server", "localhost:1", "--token-file", "two"), "must hold one word"),
        (("--server", "localhost:1", "--token-file", "none"), "must hold one word"),
        (("--server", "localhost:1", "--tls-ca", "two"), "holds no certificate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_option_is_one_line_and_exits_2(argv, message, folder, run):
    Path("two").write_text("two words")
    Path("none").write_bytes(b"\xff" * 20)
    status, out, err = run("a cat", *argv)
    assert (status, out) == (2, "") and message in err and one_line(err)
    assert sorted(os.listdir(folder)) == ["none", "two"]


@pytest.mark.parametrize(
    "code, status, message",
    [
        ("INVALID_ARGUMENT", 2, "height must be 8"),
        ("RESOURCE_EXHAUSTED", 1, "height must be 8 (RESOURCE_EXHAUSTED)"),
        ("DEADLINE_EXCEEDED", 1, "did not answer within 7 seconds"),
    ],
)
def test_failure_of_the_server_is_one_line(code, status, message, folder, run):
    with serving(Scripted([fails(code, "height must be 8.")])) as address:
        found, out, err = run("a cat", "--server", address, "--timeout", "7", "--quiet")
    assert (found, out) == (status, "") and message in err and one_line(err) and "Error" not in err
    assert os.listdir(folder) == []


def test_address_of_another_form_is_named_by_its_option(folder, run):
    status, out, err = run("a red star", "--server", "http://localhost:8501")
    assert (status, out) == (2, "") and one_line(err)
    assert "--server must be HOST:PORT of a gRPC server, such as localhost:8500; got 'http://localhost:8501'" in err


def test_missing_file_of_a_token_is_one_line(folder, run):
    status, out, err = run("a cat", "--server", "localhost:1", "--token-file", "missing")
    assert (status, out) == (1, "") and "missing" in err and one_line(err)


def test_token_of_a_file_is_sent(folder, run):
    Path("token").write_text(" s3cret\n")
    servicer = Scripted()
    with serving(servicer) as address:
        assert run("a", "--server", address, "--token-file", "token")[0] == 0
    assert servicer.headers[0]["authorization"] == "Bearer s3cret"


def test_interruption_cancels_on_the_server_and_exits_130(folder):
    servicer = Scripted([hangs])
    with serving(servicer) as address:
        process = start("a red star", "--server", address, "--out", "x.png", cwd=folder)
        assert until(lambda: servicer.running == 1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LONG)
        assert servicer.gone.wait(LONG)
    assert process.returncode == 130 and one_line(err) and "interrupted" in err
    assert os.listdir(folder) == []


def test_without_grpc_one_line_says_what_to_install(folder):
    script = (
        "import sys; sys.modules['grpc'] = None; from tfsd.cli import main; sys.exit(main(['a cat', '--server', 'localhost:1']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 1 and one_line(done.stderr) and "pip install grpcio" in done.stderr


def test_command_loads_no_tensorflow_for_pictures_of_a_server(folder):
    script = """
import json, sys
from tfsd.cli import main
status = main(["a cat", "--server", sys.argv[1], "--out", "x.png"])
print(json.dumps([status, sorted({"tensorflow", "keras"} & set(sys.modules))]))
"""
    with serving(Scripted()) as address:
        done = subprocess.run(
            [sys.executable, "-c", script, address],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
