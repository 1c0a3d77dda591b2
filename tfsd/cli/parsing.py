"""The parser of all commands: one-line errors, aliases of options, and types whose errors say what is expected."""

import argparse
import difflib
import math
import os
import re
import textwrap
from typing import Any

from tfsd.arguments.table import with_option
from tfsd.errors import shown

ALIASES = {  # other names that every command with the option has
    "--n": ("-n", "--n"),
    "--out": ("-o", "--out", "--output"),
    "--quiet": ("-q", "--quiet"),
    **{row.flag: row.flags for row in with_option().values()},
}
_FOREIGN = {  # what other programs call them; only named in messages, since some mean something else there
    **{theirs: row.flag for row in with_option().values() for theirs in row.other_flags},
    **dict.fromkeys(("--num-images", "--num-images-per-prompt", "--count", "--batch-count", "--samples"), "--n"),
    **dict.fromkeys(("--batch-size", "--batch_size"), "--batch"),
    **dict.fromkeys(("--file", "--prompt-file", "--prompts-file", "--from-file"), "--prompts"),
    **dict.fromkeys(("--outdir", "--output-dir", "--output_dir", "--filename"), "--out"),
    **dict.fromkeys(("--verbose", "--traceback"), "--debug"),
    **dict.fromkeys(("--precision", "--torch-dtype"), "--dtype"),
    **dict.fromkeys(("-f", "--force"), "--overwrite"),
    **dict.fromkeys(("-m", "--ckpt", "--checkpoint"), "--model"),
    "--port": "--grpc-port or --rest-port",
}
_PYTHON = {  # arguments of functions that errors name -> the options that set them
    **{name: row.destination for name, row in with_option().items()},
    "sizes": "size",
    "path": "out",
    "address": "server",
    "check.pictures": "report_pictures",
    "check.steps": "report_steps",
    "check.adherence": "report_prompts",
}


class UsageError(Exception):
    """A command line that cannot be understood; exits with 2."""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of examples, and names an option's value once."""

    def _format_action_invocation(self, action):
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line that names the option as it was typed.

    What it parses has `flags`: how each option was typed, or else its usual name.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", _Help)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self._flags: dict[str, str] = {}

    def add_argument(self, *names, **kwargs):
        """Adds an argument with all the names that `ALIASES` has for it."""
        names = ALIASES.get(names[0], names) if len(names) == 1 else names
        return super().add_argument(*names, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        """Returns what was parsed, and no rest: an unknown option is an error here, where its help page is known."""
        args = list(args or ())
        self._flags = {action.dest: _typed(action, args) for action in self._actions if action.option_strings}
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(self._unexpected(rest))
        namespace.flags = self._flags | getattr(namespace, "flags", {})
        return namespace, []

    def format_help(self) -> str:
        """Returns the help page. Texts that cost imports are functions, which are called here."""
        for action in self._actions:
            action.help = action.help() if callable(action.help) else action.help
        return super().format_help()

    def error(self, message: str):
        """Raises: `UsageError`, where argparse would print the usage and end the process."""
        found = re.match(r"argument (\S+): ", message)
        if found:
            names = {"/".join(action.option_strings): self._flags.get(action.dest) for action in self._actions}
            name, rest = names.get(found[1]) or found[1], message[found.end() :]
            rest = re.sub(r"^expected (one|at least one) argument$", "needs a value", rest)
            message = f"{name} {rest}" if rest.startswith(("must", "needs")) else f"{name}: {rest}"
        raise UsageError(f"{message}{'' if message.endswith(('.', '?')) else '.'} See {self.prog} --help.")

    def _get_values(self, action, arg_strings):
        """Returns the values of an argument; an option that takes several has them behind spaces or commas."""
        if action.option_strings and action.nargs == "+":
            arg_strings = [part for word in arg_strings for part in (word.strip(",").split(",") if word else [word])]
        return super()._get_values(action, arg_strings)

    def _check_value(self, action, value):
        if action.choices is not None and value not in action.choices:
            near = difflib.get_close_matches(str(value)[:100], [str(choice) for choice in action.choices], 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            listed = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"must be one of {listed}; got {shown(value)}.{hint}")

    def _unexpected(self, rest: list[str]) -> str:
        flag = next((word for word in rest if word.startswith("-") and word != "-"), None)
        if flag is None:
            return f"unexpected argument {shown(rest[0])}"
        flag = flag.partition("=")[0]
        names = [name for action in self._actions for name in action.option_strings]
        bare = {name.lstrip("-"): name for name in names if name.startswith("--")}
        close = difflib.get_close_matches(flag.lstrip("-")[:100], bare, 1)
        known = set(_FOREIGN.get(flag, "-").split(" or ")) <= set(names)
        near = [_FOREIGN[flag]] if known else [bare[one] for one in close]
        hint = f". Did you mean {near[0]}?" if near else ""
        return f"unknown option {shown(flag)[1:-1]}{hint}"


def _typed(action, args: list[str]) -> str:
    """Returns the last name by which an option was given, or its usual one: the first long name."""
    usual = next((name for name in action.option_strings if name.startswith("--")), action.option_strings[0])
    for word in reversed(args[: args.index("--")] if "--" in args else args):
        for name in action.option_strings:
            if word == name or (name.startswith("--") and word.startswith(name + "=")):
                return name
            if not name.startswith("--") and word.startswith(name) and not word.startswith("--"):
                return name
    return usual


def with_flags(message: str, flags: dict[str, str]) -> str:
    """Returns a function's message in the words of the command line: the option for the argument that it begins with."""
    if message.startswith("height and width must") and {"height", "width"} <= set(flags):
        both = [flags[side] for side in ("height", "width")]
        sizes = {flag.partition(" of ")[2] for flag in both}  # of "height of --size"
        return (sizes.pop() or " and ".join(both)) + message[len("height and width") :]
    found = re.match(r"([a-z_.]+)(?=(\[\d+\])? (must|has|is|are|may|and|costs|needs)\b)", message)
    if not found:
        return message
    name = found[1] if found[1] in flags else _PYTHON.get(found[1])
    return flags[name] + message[found.end() :] if name in flags else message


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


def integer(low: int, high: int | None = None):
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
    """Returns a type for numbers from `low` to `high`; NaN is refused."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"must be a number from {low:g} to {high:g}; got {shown(text)}")
        return number

    return parse


def prompt_text(text: str) -> str:
    """Returns a prompt as it was typed: UTF-8, also under a locale that knows ASCII alone, where Python escapes its bytes."""
    if text.isascii() or not any("\udc80" <= character <= "\udcff" for character in text):
        return text
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"must be UTF-8; got {shown(text)}") from None


def size(text: str) -> tuple[int, int]:
    """Returns (height, width) of text like 512x768, or of one number for both."""
    found = re.fullmatch(r"([0-9]{1,4})(?:x([0-9]{1,4}))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be height x width in pixels, as 512x768; got {shown(text)}")
    return int(found[1]), int(found[2] or found[1])
