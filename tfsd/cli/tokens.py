"""`tfsd tokens`: the tokens of a prompt, and what is cut off."""

import dataclasses
import json
import sys
from collections.abc import Iterator

from tfsd.cli.parsing import UsageError, add_command, prompt_text
from tfsd.cli.terminal import printable

_MAX_LINE = 2**20  # bytes; a prompt may have 64 KB
EXAMPLES = """  tfsd tokens "a red star above a blue house"
  tfsd tokens "a red star above a zeppelin" --model tiny      also tells which words the model never learned
  tfsd tokens --file prompts.jsonl > ids.jsonl                lines like {"prompt": "a red star"}
"""


def add_tokens(commands):
    """Adds the command to the parser."""
    parser = add_command(
        commands,
        "tokens",
        tokens,
        help="show the tokens of a prompt, and what is cut off",
        description="Shows the tokens of a prompt: number, text, and whether the model reads it or it is cut off. "
        "With --file, prints one JSON list of ids per line, with both marks, however many there are.",
        examples=EXAMPLES,
    )
    parser.add_argument("prompt", nargs="?", type=prompt_text, help="in quotes")
    parser.add_argument("--file", metavar="FILE", help='JSON lines with a "prompt" each; - is standard input')
    parser.add_argument("--model", default=None, help="model whose length and words count (default: Stable Diffusion 1.x)")
    parser.add_argument("--no-ftfy", action="store_true", help="do not repair text first; KerasCV does not")
    return parser


def tokens(args) -> int:
    """Runs the command."""
    from tfsd.specs import CLIPSpec
    from tfsd.text import Tokenizer

    if (args.prompt is None) == (args.file is None):
        raise UsageError("give either a prompt or --file FILE")
    spec = CLIPSpec()
    if args.model is not None:
        from tfsd.storage.model_folders import load_spec, resolve

        spec = load_spec(resolve(args.model)).text[0]
    if args.no_ftfy:
        spec = dataclasses.replace(spec, ftfy=False)
    tokenizer = Tokenizer(spec)
    if args.file is None:
        _show(tokenizer, args.prompt)
        return 0
    for where, prompt in _lines(args.file):
        try:
            ids = tokenizer.encode(prompt)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{where}: {error}") from error
        print(json.dumps(ids))
    return 0


def _show(tokenizer, prompt: str):
    split, spec = tokenizer.split(prompt), tokenizer.spec
    unknown = 0
    print(f"{spec.start_token:>6}  start")
    for piece in split.kept:
        strange = bool(spec.kept_tokens) and piece.id not in spec.kept_tokens
        unknown += strange
        print(f"{piece.id:>6}  {printable(piece.text)}{'   (the model never learned it)' if strange else ''}")
    print(f"{spec.end_token:>6}  end")
    for piece in split.cut:
        print(f"{piece.id:>6}  {printable(piece.text)}   (cut off)")
    count = len(split.kept) + len(split.cut) + 2
    verdict = "nothing is cut off" if not split.cut else f"cut off: {printable(split.cut_text.strip())}"
    print(f"{count} tokens, {spec.length} are read; {verdict}" + (f"; {unknown} the model never learned" if unknown else ""))


def _lines(name: str) -> Iterator[tuple[str, str]]:
    """Yields where each prompt of a file of JSON lines stands, and the prompt."""
    try:
        file = sys.stdin.buffer if name == "-" else open(name, "rb")
    except (OSError, ValueError) as error:
        raise UsageError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    with file:
        for number in range(1, sys.maxsize):
            try:
                line = file.readline(_MAX_LINE + 1)
            except OSError as error:
                raise UsageError(f"{name} cannot be read: {error.strerror or error}") from error
            if not line:
                return
            where = f"{name}, line {number}"
            if len(line) > _MAX_LINE:
                raise UsageError(f"{where}: has more than {_MAX_LINE} bytes")
            if line.strip():
                yield where, _prompt(line, where)


def _prompt(line: bytes, where: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: is not JSON ({error})") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        shown = line[:60].decode("utf-8", "replace").strip()
        raise UsageError(f'{where}: must be like {{"prompt": "a red star"}}; got {shown!r}')
    return entry["prompt"]
