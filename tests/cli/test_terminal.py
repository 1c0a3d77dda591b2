import errno
import os
import signal
from pathlib import Path

import pytest
from command_line import ROOT, made, one_line, start, toy

from tfsd.cli.terminal import describe, print_path, printable, standard_output
from tfsd.images import read_recipe


def test_nothing_printed_can_steer_a_terminal():
    assert printable("a\x1b[2Jb\x9b\n\u202e\u2603") == "a\\x1b[2Jb\\x9b\\n\\u202e\u2603"


def test_interruption_exits_130_and_keeps_whole_files_alone(place):
    process = start(*toy("a red star", "--n", "5000", "--batch", "1", "--steps", "1", "--seed", "1", "--out", "x.png"), cwd=place)
    assert process.stdout.readline() == "x-0000.png\n"  # it is in the midst of its work
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert one_line(err) and "interrupted" in err
    for name in made(place):
        assert read_recipe(name)["prompt"] == "a red star"


def test_reader_that_goes_away_is_no_traceback(place):
    Path("p.jsonl").write_text('{"prompt": "a red star"}\n' * 20_000)
    process = start("tokens", "--file", "p.jsonl", cwd=place)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1


@pytest.mark.parametrize("argv", [["--help"], ["models"], ["help", "generate"], ["completion", "zsh"]], ids=" ".join)
def test_closed_pipe_is_silent(argv, place):
    read, write = os.pipe()
    os.close(read)
    process = start(*argv, cwd=place, output=write)
    os.close(write)
    assert process.communicate()[1] == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_output_that_cannot_be_written_is_one_line(place):
    with open("/dev/full", "w") as full:
        process = start("models", cwd=place, output=full)
        err = process.communicate()[1]
    assert process.returncode == 1 and one_line(err)
    assert (
        err
        == "tfsd: standard output cannot be written: No space left on device. Make room on its disk, or redirect it to another.\n"
    )


def test_interruption_while_the_command_is_imported_is_silent(tmp_path):
    """A module that the command imports waits until it is interrupted."""
    (tmp_path / "textwrap.py").write_text("import sys, time; sys.stdout.write('here\\n'); sys.stdout.flush(); time.sleep(600)\n")
    process = start("models", extra={"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])})
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "")


def test_errors_of_the_system_are_told_in_words():
    assert describe(OSError(errno.ENOSPC, "No space left on device")) == (1, "No space left on device. Make room on that disk.")
    assert describe(FileNotFoundError(errno.ENOENT, "No such file or directory", "x.txt")) == (
        1,
        "x.txt: No such file or directory.",
    )


def test_names_that_are_not_utf8_are_printed_as_they_are(capfdbinary):
    with standard_output():
        print_path(os.fsdecode(b"\xff\xfe/model"))
        print_path("plain")
    assert capfdbinary.readouterr().out == b"\xff\xfe/model\nplain\n"


def test_terminal_that_knows_ascii_alone_gets_escapes(place):
    place.joinpath("\u0441\u043d\u0435\u0433").mkdir()
    ascii_alone = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    process = start("tokens", "snow \u2603", cwd=place, extra=ascii_alone)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "") and out.isascii() and "snow" in out
    process = start("show", "\u0441\u043d\u0435\u0433.png", cwd=place, extra=ascii_alone)
    out, err = process.communicate()
    assert process.returncode == 1 and one_line(err) and err.isascii()
