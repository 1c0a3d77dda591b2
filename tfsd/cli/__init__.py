"""The command `tfsd`. TensorFlow is imported only inside the commands that need it."""

import argparse
import os
import sys
import warnings

from tfsd import __version__
from tfsd.cli import bench, convert, download, evaluate, export, generate, load_test, models, serve, show, tokens, train
from tfsd.cli.parsing import Parser, UsageError
from tfsd.cli.terminal import describe, printable
from tfsd.errors import shown

COMMANDS = {
    "generate": generate.add_generate,
    "tokens": tokens.add_tokens,
    "show": show.add_show,
    "models": models.add_models,
    "download": download.add_download,
    "convert": convert.add_convert,
    "train": train.add_train,
    "eval": evaluate.add_eval,
    "bench": bench.add_bench,
    "export": export.add_export,
    "verify": export.add_verify,
    "serve": serve.add_serve,
    "load-test": load_test.add_load_test,
}
EPILOG = """examples:
  tfsd "a red star above a blue house at night"     one picture, made by the embedded model
  tfsd "a cat in the snow" --n 4 --grid --seed 7    four of them in one file
  tfsd show a-cat-in-the-snow.png                   how a picture was made
  tfsd models                                       what else there is

`tfsd COMMAND --help` explains a command. The first argument is a prompt if it is no command."""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Leaves room for the longest command, which argparse forgets to be further in than an option."""

    def add_argument(self, action):
        super().add_argument(action)
        if action.dest == "command":
            self._action_max_length = max(self._action_max_length, 4 + max(map(len, action.choices)))


def build_parser() -> Parser:
    """Returns the parser of all commands; what it parses has `run`, the function of the command."""
    description = "Stable Diffusion, deployed with TensorFlow."
    parser = Parser(prog="tfsd", description=description, epilog=EPILOG, formatter_class=_Help)
    parser.add_argument("--version", action="version", version=f"tfsd {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", parser_class=Parser)
    for add in COMMANDS.values():
        add(commands)
    return parser


def with_command(argv: list[str]) -> list[str]:
    """Returns the arguments with `generate` put in where they begin with a prompt or its options.

    Raises: `UsageError` for a word that is a mistyped command.
    """
    first = next((i for i, word in enumerate(argv) if word != "--debug"), None)
    if first is None or argv[first] in (*COMMANDS, "-h", "--help", "--version"):
        return argv
    word = argv[first]
    for command in COMMANDS:
        if _mistyped(word, command):
            word = shown(word)
            raise UsageError(f"there is no command {word}. Did you mean {command!r}? For a picture: tfsd generate {word}.")
    return [*argv[:first], "generate", *argv[first:]]


def _mistyped(word: str, command: str) -> bool:
    """Tells whether two neighbours of a command's letters changed places or one, not the first, is missing or too much.

    Other letters in place of its own are no sign: a beach is no bench, snow no show. Words one letter longer or shorter
    than the commands of four are words themselves: a sow.
    """
    swapped = {command[:i] + command[i + 1] + command[i] + command[i + 2 :] for i in range(len(command) - 1)}
    near = len(command) > 4 and (word in _shorter(command) or command in _shorter(word))
    return word in swapped or near


def _shorter(word: str) -> set[str]:
    return {word[:i] + word[i + 1 :] for i in range(1, len(word))} if len(word) < 20 else set()


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not every terminal can show every prompt
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            if not debug:
                _one_line_warnings()
            return _run(argv)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing more was written", 130)
    except BrokenPipeError:  # of `tfsd tokens ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python complains at exit that it cannot flush
        return 1
    except Exception as error:  # the last stop: whatever it is, a user gets one line
        if debug:
            raise
        status, message = describe(error)
        return _fail(message, status)


def _run(argv: list[str]) -> int:
    parser = build_parser()
    if not argv or argv == ["--debug"]:
        parser.print_help()
        return 0
    args = parser.parse_args(with_command(argv))
    status = args.run(args)
    sys.stdout.flush()
    return status


def _one_line_warnings():
    """Shows what this package warns of, such as text that is cut off, and nothing that its libraries do."""
    from tfsd.text import PromptTruncationWarning

    warnings.simplefilter("ignore")
    warnings.simplefilter("always", PromptTruncationWarning)
    warnings.showwarning = lambda message, *_: print(f"tfsd: warning: {printable(str(message))}", file=sys.stderr)


def _fail(message: str, status: int) -> int:
    print(f"tfsd: {printable(message)}", file=sys.stderr)
    return status
