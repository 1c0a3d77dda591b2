"""`tfsd completion`: scripts that complete commands and options in a shell, made from the parser."""

import argparse
import re
from collections.abc import Iterator
from typing import NamedTuple

from tfsd.cli.parsing import Parser, add_command
from tfsd.samplers.names import COMMUNITY_NAMES

EXAMPLES = """  tfsd completion bash > ~/.local/share/bash-completion/completions/tfsd
  eval "$(tfsd completion zsh)"                 in ~/.zshrc, after compinit
  tfsd completion fish > ~/.config/fish/completions/tfsd.fish
"""
_VALUES = {"sampler": tuple(COMMUNITY_NAMES)}  # of options that take other names, too


class Option(NamedTuple):
    """An option as a shell completes it; `values` are None where it takes none, empty where anything fits."""

    names: list[str]
    values: tuple[str, ...] | None
    help: str


class Place(NamedTuple):
    """What can stand behind a command: its options, and the words that it takes as arguments."""

    command: str
    help: str
    options: list[Option]
    words: list[str]


def add_completion(commands):
    """Adds the command to the parser."""
    parser = add_command(
        commands,
        "completion",
        completion,
        help="print a script that completes commands in a shell",
        examples=EXAMPLES,
    )
    parser.add_argument("shell", choices=tuple(SHELLS), help="for which it is")
    return parser


def completion(args) -> int:
    """Runs the command."""
    from tfsd.cli import build_parser

    print(SHELLS[args.shell](list(places(build_parser()))), end="")
    return 0


def places(parser: Parser) -> Iterator[Place]:
    """Yields what can stand behind each command; the first is behind `tfsd` alone, where a prompt's options may, too."""
    found = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {action.dest: action.help for action in found._choices_actions}
    below = [_place(name, helps[name] or "", sub) for name, sub in found.choices.items()]
    top, draws = _place("", "", parser), next(place for place in below if place.command == "generate")
    names = {name for option in top.options for name in option.names}
    options = top.options + [option for option in draws.options if not names & set(option.names)]
    yield Place("", "", options, [*top.words, "help", "version"])
    yield Place("help", "explain a command", [], list(found.choices))
    yield from below


def _place(command: str, help: str, parser: Parser) -> Place:
    options: list[Option] = []
    words: list[str] = []
    for action in parser._actions:
        values = _VALUES.get(action.dest, tuple(map(str, action.choices or ())))
        if action.option_strings:
            shown = action.help if isinstance(action.help, str) else ""  # what is made for help alone may cost imports
            options.append(Option(list(action.option_strings), None if action.nargs == 0 else values, shown))
        else:
            words += values
    return Place(command, help, options, words)


def _names(place: Place) -> str:
    return " ".join([*place.words, *(name for option in place.options for name in option.names)])


def bash(found: list[Place]) -> str:
    """Returns the script for bash."""
    commands = "|".join(place.command for place in found if place.command)
    lines = [
        "_tfsd() {",
        "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= word",
        '    [[ $cur == "=" ]] && cur=',
        '    [[ $prev == "=" ]] && prev=${COMP_WORDS[COMP_CWORD-2]}',
        "    COMPREPLY=()",
        '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
        f"        case $word in {commands}) command=$word; break ;; esac",
        "    done",
        *_cases(found, lambda words: f'COMPREPLY=($(compgen -W "{words}" -- "$cur"))', "return"),
        "}",
        "complete -o default -F _tfsd tfsd",
    ]
    return "\n".join(lines) + "\n"


def zsh(found: list[Place]) -> str:
    """Returns the script for zsh."""
    commands = "|".join(place.command for place in found if place.command)
    lines = [
        "#compdef tfsd",
        "_tfsd() {",
        "    local prev=${words[CURRENT-1]} command= word",
        "    for word in ${words[2,CURRENT-1]}; do",
        f"        case $word in ({commands}) command=$word; break ;; esac",
        "    done",
        *_cases(found, lambda words: f"compadd -- {words}", "return"),
        "    _files",
        "}",
        "compdef _tfsd tfsd",
    ]
    return "\n".join(lines) + "\n"


def _cases(found: list[Place], offer, end: str) -> Iterator[str]:
    """Yields the two `case` statements of both shells: values of the option before, then what the command takes."""
    yield '    case "$command $prev" in'
    for place in found:
        for option in place.options:
            if option.values is not None:
                patterns = "|".join(f'"{place.command} {name}"' for name in option.names)
                yield f"        {patterns}) {offer(' '.join(option.values)) if option.values else ':'}; {end} ;;"
    yield "    esac"
    yield "    case $command in"
    for place in found:
        yield f"        {place.command or chr(34) * 2}) {offer(_names(place))} ;;"
    yield "    esac"


def fish(found: list[Place]) -> str:
    """Returns the script for fish."""
    lines = []
    for place in found:
        where = f"-n '__fish_seen_subcommand_from {place.command}'" if place.command else "-n __fish_use_subcommand"
        if place.command:
            lines.append(f"complete -c tfsd -n __fish_use_subcommand -a {place.command} -d {_quoted(place.help)}")
        if place.command and place.words:
            lines.append(f"complete -c tfsd {where} -a {_quoted(' '.join(place.words))}")
        for option in place.options:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
            values = "" if option.values is None else f" -r -a {_quoted(' '.join(option.values))}" if option.values else " -r"
            lines.append(f"complete -c tfsd {where} {names}{values} -d {_quoted(_short(option.help))}")
    return "\n".join(lines) + "\n"


def _short(help: str) -> str:
    return re.split(r"[;(]|: ", help)[0].strip()[:60]


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
