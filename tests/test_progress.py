"""What is drawn while something takes long: on terminals alone, from the first moment, and Ctrl-C is answered at once."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from tfsd.progress import Cancelled, Progress, Stages, aside

ROOT = Path(__file__).parents[1]


@pytest.fixture
def terminal(monkeypatch):
    """Standard error as a terminal that keeps what is written to it."""
    errors = io.StringIO()
    errors.isatty = lambda: True
    monkeypatch.setattr("tfsd.progress.sys", types.SimpleNamespace(stderr=errors))  # pytest puts its own into the real one
    return errors


def lines(terminal) -> list[str]:
    """Returns what stood on the line, one after the other, without times."""
    drawn = re.split(r"\r|\x1b\[K", terminal.getvalue())
    return [line for line in dict.fromkeys(re.sub(r"[0-9.]+ s$", "", part) for part in drawn) if line]


def test_stage_is_drawn_at_once_and_taken_away_at_the_end(terminal):
    with Stages(True) as stages:
        stages("loading")
        assert terminal.getvalue().endswith("loading ...\x1b[K")
        stages("drawing", 4)
        stages.step(1)
        assert "drawing:  25%" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")


@pytest.mark.parametrize("wanted, is_terminal", [(False, True), (True, False)])
def test_nothing_is_drawn_where_nobody_asked_or_no_terminal_is(wanted, is_terminal, terminal):
    terminal.isatty = lambda: is_terminal
    with Stages(wanted, keep=True) as stages:
        stages("loading")
        stages("drawing", 4)
        stages.advance()
    list(Progress(wanted, None).chunks(4, "kind", compiles=True))
    assert terminal.getvalue() == ""


def test_closed_standard_error_is_no_terminal(monkeypatch):
    monkeypatch.setattr("tfsd.progress.sys", types.SimpleNamespace(stderr=None))
    with Stages(True) as stages:
        stages("loading")
    assert not stages.drawn


def test_finished_stages_stay_with_their_time_where_they_shall(terminal):
    with Stages(True, keep=True) as stages:
        stages("loading")
        stages("saving")
    assert re.findall(r"\x1b\[K(\w+): [0-9.]+ s\n", terminal.getvalue()) == ["loading", "saving"]


def test_stages_of_what_is_called_are_drawn_on_the_same_line(terminal):
    with Stages(True) as outer:
        outer.label = "picture 1 of 2"
        for _ in Progress(True, None).chunks(3, "kind", compiles=True):
            assert Stages.within(False) is outer
    assert lines(terminal)[0] == "picture 1 of 2: compiling ..."
    assert lines(terminal)[-1].startswith("picture 1 of 2: drawing: 100%")


def test_compiling_is_a_stage_and_no_step():
    pace, told = {}, []
    chunks = list(Progress(False, lambda done, steps: told.append((done, steps)), pace).chunks(3, "kind", compiles=True))
    assert chunks[:2] == [(1, 0), (0, 1)] and told[0] == (1, 3) and told[-1] == (3, 3)
    assert list(Progress(False, lambda done, steps: None, pace).chunks(3, "kind", compiles=True))[0][0] == 0
    assert list(Progress(False, None).chunks(3, "other", compiles=True)) == [(0, 3)]


def test_line_comes_back_below_what_was_printed(terminal):
    with Stages(True) as stages:
        stages("drawing")
        with aside():
            print("a.png", file=terminal)
        assert terminal.getvalue().endswith("\r\x1b[Ka.png\n\rdrawing ...\x1b[K")


def test_cancelling_leaves_no_line(terminal):
    with pytest.raises(Cancelled):
        list(Progress(True, lambda done, steps: False).chunks(3))
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert Stages.within(False) is not Stages.within(False)


def test_threads_have_lines_of_their_own():
    found = []
    with Stages(False) as ours:
        thread = threading.Thread(target=lambda: found.append(Stages.within(False)))
        thread.start()
        thread.join()
        assert found[0] is not ours and Stages.within(False) is ours


BUSY = """
import hashlib, sys, threading
from tfsd.progress import Stages, answering_interrupts

def tell(main=threading.get_ident(), line=13):  # main can wait for this thread on that line only while it computes
    while sys._current_frames()[main].f_lineno != line:
        pass
    print("begun", flush=True)

with Stages(False) as stages, answering_interrupts(stages, lambda text: print(text, file=sys.stderr, flush=True)):
    stages("compiling")
    threading.Thread(target=tell, daemon=True).start()
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 30_000_000)  # as compiling: in C, where Python hears no signal
    print("not reached")
"""


@pytest.fixture
def busy():
    def deaf_to_nothing():
        signal.signal(signal.SIGINT, signal.default_int_handler)

    process = subprocess.Popen(
        [sys.executable, "-c", BUSY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=deaf_to_nothing,
    )
    assert process.stdout.readline() == "begun\n"
    yield process
    process.kill()
    process.communicate()


def test_ctrl_c_is_answered_while_nothing_can_stop(busy):
    busy.send_signal(signal.SIGINT)
    assert busy.stderr.readline() == "stopping after compilation; Ctrl-C again stops at once\n"
    assert busy.poll() is None


def test_second_ctrl_c_ends_at_once(busy):
    busy.send_signal(signal.SIGINT)
    assert busy.stderr.readline().startswith("stopping after compilation")
    busy.send_signal(signal.SIGINT)
    assert busy.wait() == 130
    assert busy.stdout.read() == ""


DROPPED = """
import os, signal, time
from tfsd.progress import Stages, answering_interrupts

class Callback:
    def __del__(self):  # Python prints what is raised here and goes on, as in the callbacks of imports
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # the interpreter's turn to raise KeyboardInterrupt
            pass

signal.signal(signal.SIGINT, signal.default_int_handler)
with Stages(False) as stages, answering_interrupts(stages, print):
    stages("importing TensorFlow")
    Callback()
    while not stages.interrupted:
        time.sleep(0.01)
    try:
        stages("loading the model")
    except KeyboardInterrupt:
        print("stopped")
"""


def test_ctrl_c_that_python_dropped_in_a_callback_stops_at_the_next_stage():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True, env=environment)
    assert "Exception ignored in" in done.stderr
    assert done.stdout.splitlines()[-1] == "stopped"
