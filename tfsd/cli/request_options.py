"""Options of the command line for the arguments of a request, made from their table."""

from typing import Any

from tfsd.arguments.table import TEXT_TO_IMAGE, Argument, arguments_of, with_option
from tfsd.cli.parsing import integer, prompt_text, real

_TYPES = {
    "text": lambda row: {"type": prompt_text},
    "whole": lambda row: {"type": integer(row.low, row.high)},
    "real": lambda row: {"type": real(row.low, row.high)},
    "image": lambda row: {},
    "choice": lambda row: {} if row.aliases else {"choices": row.choices},  # aliases are looked up later, in any case
}


def request_options() -> dict[str, dict[str, Any]]:
    """Returns each option with the keywords for `add_argument`."""
    return {row.flag: _keywords(row) for row in with_option().values()}


def _keywords(row: Argument) -> dict[str, Any]:
    default = None if row.default == "" else row.default
    shown = row.flag_default or ("the model's" if row.of_model else "" if default is None else f"{default}".removesuffix(".0"))
    keywords = {"default": default, "help": f"{row.full_help} (default: {shown})" if shown else row.full_help}
    return keywords | _TYPES[row.kind](row) | ({"metavar": row.metavar} if row.metavar else {})


def given_arguments(args, target: str, task: str = TEXT_TO_IMAGE) -> dict[str, Any]:
    """Returns the values of the options that a target and task take, by the names of the arguments."""
    return {name: getattr(args, row.destination) for name, row in with_option(arguments_of(target, task)).items()}


def fixed_options(target: str, task: str = TEXT_TO_IMAGE) -> dict[str, Any]:
    """Returns the options that a target and task do not take, with the value that means "not given"."""
    taken = arguments_of(target, task)
    return {row.destination: row.default for name, row in with_option().items() if name not in taken}
