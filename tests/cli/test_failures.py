import pytest
from command_line import made, one_line, toy

from tfsd.cli import main
from tfsd.cli.terminal import describe


@pytest.mark.parametrize(
    "argv, message",
    [
        (("x", "--model", "missing"), "There is no model 'missing'"),
        (("x", "--model", "sd-1.4"), "tfsd download sd-1.4 --accept-licence"),
        (("x", "--model", "."), "not a model folder"),
        (("x", "--model", "toy", "--out", "missing/x.png"), "there is no folder"),
        (("x", "--model", "toy", "--out", "toy/spec.json/x.png"), "there is no folder"),
        (("show", "missing.png"), "No such file"),
        (("show", "toy/spec.json"), "is not a PNG, JPEG or WebP file"),
        (("show", "."), "not a regular file"),
        (("convert", "missing", "new"), "does not exist"),
        (("download", "sd-1.4"), "To accept, add --accept-licence"),
        (("download", "sd-9"), "knows sd-1.4"),
        (("download", "sd-1.4", "--accept-licence", "--offline"), "offline mode allows no download"),
        (("eval", "--model", "toy", "--sheet", "missing/x.png"), "there is no folder"),
        (("eval", "--model", "missing"), "There is no model 'missing'"),
        (("tokens", "x", "--model", "missing"), "There is no model 'missing'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_failure_is_one_line_and_exits_1(argv, message, place, run):
    status, out, err = run(*argv)
    assert (status, out) == (1, "")
    assert message in err
    assert one_line(err.splitlines(keepends=True)[-1])
    assert made(place) == []


def test_damaged_weights_are_named(place, run):
    data = bytearray((place / "toy/unet.weights.h5").read_bytes())
    data[len(data) // 2] ^= 1
    (place / "toy/unet.weights.h5").write_bytes(data)
    status, out, err = run(*toy("a red star"))
    assert (status, out) == (1, "")
    assert one_line(err) and "unet.weights.h5 is damaged" in err
    assert made(place) == []


def test_debug_shows_where_an_error_comes_from(place):
    for argv in (["--debug", "show", "missing.png"], ["show", "missing.png", "--debug"]):
        with pytest.raises(OSError, match="missing.png"):
            main(argv)


def test_unexpected_errors_are_one_line_too():
    assert describe(KeyError("x")) == (1, "KeyError: 'x' (--debug shows where)")
    assert describe(RuntimeError("first\nsecond")) == (1, "RuntimeError: first (--debug shows where)")
    assert describe(RuntimeError()) == (1, "RuntimeError: RuntimeError (--debug shows where)")
    assert describe(MemoryError())[1].startswith("out of memory")
    assert len(describe(ValueError("x" * 10**6))[1]) < 1100


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_training_into_a_file_is_refused_before_it_begins(folder, place, run):
    (place / "file").write_text("")
    status, out, err = run("train", folder, "--steps", "1", "--stage", "autoencoder")
    assert (status, out) == (1, "") and one_line(err) and f"{folder} cannot be a folder: " in err
