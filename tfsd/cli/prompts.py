"""The prompts of `tfsd generate`: of the command line, a file or standard input."""

import sys

from tfsd.cli.parsing import UsageError
from tfsd.cli.terminal import say
from tfsd.cli.words import near
from tfsd.errors import shown

_MAX_FILE = 16 * 2**20  # bytes of a file of prompts


def read_prompts(args, commands) -> list[str]:
    """Returns the prompts to draw; `commands` are the names of commands, for hints.

    Raises: `UsageError` if there are none, or if they look like a mistake.
    """
    if args.prompts is not None and args.prompt:
        raise UsageError("give prompts or --prompts FILE, not both. See tfsd generate --help.")
    source = "-" if args.prompt == ["-"] else args.prompts
    if source is not None:
        return _lines(source)
    if not args.prompt:
        raise UsageError('a prompt is missing, as in: tfsd "a red star". See tfsd generate --help.')
    if not args.allow_empty and not all(prompt.strip() for prompt in args.prompt):
        raise UsageError("the prompt is empty. Give a word, or --allow-empty to draw from an empty prompt.")
    option = next((word for word in args.prompt if word.startswith("-") and " " not in word), None)
    if len(args.prompt) > 1 and option is not None:  # only after -- does it get here
        raise UsageError(f"everything after -- is a prompt, also {shown(option)}; put options before it: tfsd --n 2 -- list.")
    if len(args.prompt) > 1 and not any(" " in prompt for prompt in args.prompt):
        command = near(args.prompt[0], commands)
        hint = f" {shown(args.prompt[0])} is not a command; did you mean '{command}'?" if command else ""
        raise UsageError(f'put the prompt in quotes: tfsd "{" ".join(args.prompt)[:200]}".{hint}')
    return args.prompt


def _lines(source: str) -> list[str]:
    """Returns the lines of a file of prompts without empty ones and comments, which begin with #."""
    stripped = [line.strip() for line in _read(source).splitlines()]
    prompts = [line for line in stripped if line and not line.startswith("#")]
    if not prompts:
        raise UsageError(f"{'standard input' if source == '-' else source} holds no prompt; lines that begin with # are comments")
    return prompts


def _read(source: str) -> str:
    if source == "-":
        if sys.stdin is None:
            raise UsageError("standard input is closed; no prompts can be read from it")
        if sys.stdin.isatty():
            say("reading prompts from the terminal, one per line; Ctrl-D ends them")
        data = sys.stdin.buffer.read(_MAX_FILE + 1)
    else:
        try:
            with open(source, "rb") as file:
                data = file.read(_MAX_FILE + 1)
        except (OSError, ValueError) as error:
            raise UsageError(f"{source} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > _MAX_FILE:
        raise UsageError(f"{source} has more than {_MAX_FILE} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} is not UTF-8 (byte {error.start})") from error
