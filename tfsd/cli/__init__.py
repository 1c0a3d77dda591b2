"""The command `tfsd`. TensorFlow and numpy are imported only inside the commands that need them."""

import argparse
import importlib
import sys
from collections.abc import Iterable
from typing import NamedTuple

from tfsd import __version__
from tfsd.cli import words
from tfsd.cli.parsing import Parser, UsageError, with_flags
from tfsd.cli.terminal import describe, own_warnings, say, standard_output
from tfsd.cli.words import require_prompt


class Command(NamedTuple):
    """Where a command is: its module below `tfsd.cli`, and the function there that adds its parser."""

    module: str
    add: str


COMMANDS = {
    "generate": Command("generate", "add_generate"),
    "tokens": Command("tokens", "add_tokens"),
    "show": Command("show", "add_show"),
    "models": Command("models", "add_models"),
    "download": Command("download", "add_download"),
    "convert": Command("convert", "add_convert"),
    "train": Command("train", "add_train"),
    "eval": Command("evaluate", "add_eval"),
    "bench": Command("bench", "add_bench"),
    "export": Command("export", "add_export"),
    "verify": Command("export", "add_verify"),
    "serve": Command("serve", "add_serve"),
    "load-test": Command("load_test", "add_load_test"),
    "completion": Command("completion", "add_completion"),
}
EPILOG = """examples:
  tfsd "a red star above a blue house at night"     one image, by the included model
  tfsd "a cat in the snow" --n 4 --grid --seed 7    four of them in one file
  tfsd show a-cat-in-the-snow.png                   how an image was made
  tfsd models                                       the models that have a name
  tfsd help serve                                   explains a command

The first argument is a prompt if it is neither a command nor similar to one. After -- everything is a prompt: tfsd -- help"""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Leaves room for the longest command, which argparse forgets to be further in than an option."""

    def add_argument(self, action):
        super().add_argument(action)
        if action.dest == "command":
            self._action_max_length = max(self._action_max_length, 4 + max(map(len, action.choices)))


def build_parser(names: Iterable[str] = tuple(COMMANDS)) -> Parser:
    """Returns the parser of the named commands; what it parses has `run`, the function of the command."""
    description = "Stable Diffusion, deployed with TensorFlow."
    parser = Parser(prog="tfsd", description=description, epilog=EPILOG, formatter_class=_Help)
    parser.add_argument("--version", "-V", action="version", version=f"tfsd {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error, and all warnings")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", parser_class=Parser)
    for name in names:
        module = importlib.import_module(f"tfsd.cli.{COMMANDS[name].module}")
        getattr(module, COMMANDS[name].add)(commands)
    return parser


def with_command(argv: list[str]) -> list[str]:
    """Returns the arguments with the command put in that they mean; see `tfsd.cli.words.with_command`."""
    return words.with_command(argv, tuple(COMMANDS))


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not every terminal can show every prompt
            stream.reconfigure(errors="backslashreplace")
    try:
        with standard_output():
            return _run(argv, debug)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing more was written", 130)
    except BrokenPipeError:  # of `tfsd tokens ... | head`
        return 1
    except Exception as error:  # the last stop: whatever it is, a user gets one line
        if debug:
            raise
        status, message = describe(error)
        return _fail(message, status)


def _run(argv: list[str], debug: bool) -> int:
    if not argv or argv == ["--debug"]:
        build_parser().print_help()
        return 0
    args = _parsed(argv)
    with own_warnings(args.flags, everything=debug):
        try:
            return args.run(args)
        except ValueError as error:
            message = with_flags(str(error), args.flags)
            if debug or message == str(error):
                raise
            raise UsageError(message) from error


def _parsed(argv: list[str]) -> argparse.Namespace:
    """Returns the parsed arguments; only the modules of the command that they name are imported."""
    full = with_command(argv)
    name = next((word for word in full if word in COMMANDS), None) if full[0] in (*COMMANDS, "--debug") else None
    args = build_parser(COMMANDS if name is None else [name]).parse_args(full)
    if args.command is None:
        raise UsageError("a command or a prompt is missing. See tfsd --help.")
    if len(full) > len(argv) and "--" not in argv:  # a prompt may come after its options
        for prompt in args.prompt[:1]:
            require_prompt(prompt, tuple(COMMANDS))
    return args


def _fail(message: str, status: int) -> int:
    say(message)
    return status
