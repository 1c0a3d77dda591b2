"""What all commands' parsers share: one-line errors, and types that say what they expect."""

import argparse
import math
import textwrap

from tfsd.errors import shown


class UsageError(Exception):
    """A command line that cannot be understood; exits with 2."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose help keeps the lines of its examples."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str):
        """Raises: `UsageError`, where argparse would print the usage and end the process."""
        raise UsageError(f"{message}. See {self.prog} --help.")


def add_command(commands, name: str, run, *, help: str, examples: str = "", description: str | None = None) -> Parser:
    """Returns the parser of a new command; `run(args)` returns its exit status."""
    text = f"{description or help}".strip()
    parser = commands.add_parser(
        name,
        help=help,
        description=textwrap.fill(text[0].upper() + text[1:] + ("" if text.endswith(".") else "."), 79),
        epilog=f"examples:\n{examples}" if examples else None,
    )
    # SUPPRESS: else the default here would undo a --debug before the command
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def whole(low: int, high: int | None = None):
    """Returns a type for whole numbers from `low` to `high`."""
    wanted = f"a whole number from {low} to {high}" if high is not None else f"a whole number of at least {low}"

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if number < low or (high is not None and number > high):
            raise argparse.ArgumentTypeError(f"must be {wanted}; got {shown(text)}")
        return number

    return parse


def real(low: float, high: float):
    """Returns a type for numbers from `low` to `high`; NaN is none."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"must be a number from {low:g} to {high:g}; got {shown(text)}")
        return number

    return parse
