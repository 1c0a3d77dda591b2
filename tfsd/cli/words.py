"""Tells commands from prompts, which need no command before them."""

import difflib
from collections.abc import Sequence

from tfsd.cli.parsing import UsageError
from tfsd.errors import shown

# What other programs call commands, and what does the same here; None if nothing does.
USUAL = {
    **dict.fromkeys(("list", "ls"), "models"),
    **dict.fromkeys(("run", "txt2img", "text2img", "text-to-image", "text_to_image"), "generate"),
    **dict.fromkeys(("draw", "make", "create", "paint", "render", "imagine", "sketch", "dream"), "generate"),
    **dict.fromkeys(("info", "inspect", "metadata"), "show"),
    **dict.fromkeys(("pull", "fetch", "install"), "download"),
    **dict.fromkeys(("import",), "convert"),
    **dict.fromkeys(("server", "start"), "serve"),
    **dict.fromkeys(("benchmark",), "bench"),
    **dict.fromkeys(("evaluate",), "eval"),
    **dict.fromkeys(("check", "test", "validate"), "verify"),
    **dict.fromkeys(("tokenize",), "tokens"),
    **dict.fromkeys(("finetune", "fine-tune"), "train"),
    **dict.fromkeys(("loadtest", "load_test"), "load-test"),
    **dict.fromkeys(("completions", "autocomplete"), "completion"),
    **dict.fromkeys(("usage", "commands", "man", "options"), "help"),
    **dict.fromkeys(("init", "config", "configure", "settings", "login", "logout", "update", "upgrade", "uninstall")),
    **dict.fromkeys(("remove", "delete", "rm", "search", "status", "stop", "quit", "exit", "push", "deploy")),
}


def with_command(argv: list[str], commands: Sequence[str]) -> list[str]:
    """Returns the arguments with `generate` put in where they begin with a prompt or its options.

    `help COMMAND` and `version` become the options of the same meaning.
    Raises: `UsageError` for a word that is more likely a mistaken command than a prompt.
    """
    first = next((i for i, word in enumerate(argv) if word != "--debug"), None)
    if first is None or argv[first] in (*commands, "-h", "--help", "--version", "-V"):
        return argv
    before, word, rest = argv[:first], argv[first], argv[first + 1 :]
    if word == "version":
        return [*before, "--version"]
    if word == "help":
        topic = [one for one in rest if not one.startswith("-")]
        if topic and topic[0] not in (*commands, "help", "version"):
            raise UsageError(f"there is no command {shown(topic[0])}{_hint(topic[0], commands)} See tfsd --help.")
        return [*before, *(topic if topic[:1] != ["help"] and topic[:1] != ["version"] else []), "--help"]
    require_prompt(word, commands)
    return [*before, "generate", *argv[first:]]


def require_prompt(word: str, commands: Sequence[str]):
    """Raises: `UsageError` for a word that is equal or close to a usual name of a command."""
    if meant(word, commands) or word.lower() in USUAL:
        raise UsageError(
            f"there is no command {shown(word)}{_hint(word, commands)} To draw this word: tfsd -- {word}. Commands: tfsd --help."
        )


def meant(word: str, commands: Sequence[str]) -> str | None:
    """Returns the command that a word is another name or a misspelling of."""
    word = word.lower()
    if USUAL.get(word):
        return USUAL[word]
    return next((name for name in (*commands, "help", "version") if word == name or _mistyped(word, name)), None)


def near(word: str, commands: Sequence[str]) -> str | None:
    """Returns the command that a word, which can be no prompt, may have meant."""
    found = meant(word, commands) or next(iter(difflib.get_close_matches(word.lower()[:40], commands, 1, 0.75)), None)
    return found


def _hint(word: str, commands: Sequence[str]) -> str:
    name = near(word, commands)
    return f". Did you mean '{name}'?" if name else "."


def _mistyped(word: str, command: str) -> bool:
    """Tells whether two neighbours of a command's letters changed places, or one, not the first, is missing or too much.

    In commands of six letters and more one letter may also be another. Shorter ones are too close to words that may be
    prompts: beach and bench, snow and show. So are words one letter longer or shorter than commands of four letters.
    """
    swapped = {command[:i] + command[i + 1] + command[i] + command[i + 2 :] for i in range(len(command) - 1)}
    other = len(command) >= 6 and len(word) == len(command) and sum(a != b for a, b in zip(word, command)) == 1
    return word in swapped or other or len(command) > 4 and (word in _shorter(command) or command in _shorter(word))


def _shorter(word: str) -> set[str]:
    return {word[:i] + word[i + 1 :] for i in range(1, len(word))} if len(word) < 20 else set()
