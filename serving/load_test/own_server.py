"""Runs `tfsd serve` in a separate process while a block of code runs."""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

GRACE_SECONDS = 5  # for requests under way when the server is stopped
STOP_SECONDS = 30.0  # after which it is killed
_LINES = re.compile(r"gRPC (\S+:\d+)\npage http://(\S+:\d+)/\n")


class OwnServer:
    """A running server process: `address` is HOST:PORT of gRPC, `rest` that of HTTP."""

    def __init__(self, process: subprocess.Popen, address: str, rest: str):
        self.process, self.address, self.rest = process, address, rest

    def peak_bytes(self) -> int | None:
        """Returns the peak memory of the process; None if the system does not report it, or the process has ended."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            return None
        found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        return int(found[1]) * 1024 if found else None


@contextlib.contextmanager
def own_server(folder: str | Path, options: Sequence[str] = ()) -> Iterator[OwnServer]:
    """Serves a folder of models on free ports of this machine; leaving the block stops the server.

    `options` are further options of `tfsd serve`.
    Raises: `OSError` with the last line of the server's log if it does not start.
    """
    package = str(Path(__file__).parents[3])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    argv = [sys.executable, "-m", "tfsd", "serve", str(folder), "--grpc-port", "0", "--rest-port", "0"]
    argv += ["--grace", str(GRACE_SECONDS), *options]
    with tempfile.TemporaryFile("w+") as log, ThreadPoolExecutor(1) as starter:
        # In a thread, where no signal can interrupt it between the start of the process and the return value.
        starting = starter.submit(
            subprocess.Popen,
            argv,
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C must reach this process only, which then stops the server
        )
        try:
            process = starting.result()
            printed = "".join(itertools.islice(process.stdout or (), 2))
            found = _LINES.fullmatch(printed)
            if found is None:
                raise OSError(f"The server did not start: {_last_line(process, log)}")
            yield OwnServer(process, found[1], found[2])
        finally:
            _stop(starting.result())


def _stop(process: subprocess.Popen):
    """Terminates a process; kills it if it does not end in time."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    finally:  # also after another Ctrl-C
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _last_line(process: subprocess.Popen, log) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    return lines[-1].removeprefix("tfsd: ") if lines else f"it ended with status {process.returncode}."
