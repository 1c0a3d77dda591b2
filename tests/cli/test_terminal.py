import signal
from pathlib import Path

from command_line import made, one_line, start, toy

from tfsd.cli.terminal import printable
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
