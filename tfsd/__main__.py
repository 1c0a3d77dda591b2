"""The command `tfsd`, also as `python -m tfsd`. Importing this module is quick, so that Ctrl-C is answered from then on."""

import os
import signal
import sys


def main() -> int:
    """Runs `tfsd.cli.main`; Ctrl-C while that is being imported ends the process with 130 and without a traceback."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, as in a shell's background
    if ours:
        signal.signal(signal.SIGINT, _leave)
    from tfsd.cli import main as run

    try:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:
        return 130


def _leave(*_):
    os._exit(130)  # an exception would be lost where Python drops those of callbacks, and else be shown with its traceback


if __name__ == "__main__":
    sys.exit(main())
