"""`tfsd show`: the recipes that images carry."""

import functools
import math
import shlex
import sys

from tfsd.arguments.table import with_option
from tfsd.cli.parsing import add_command
from tfsd.cli.terminal import describe, print_json, print_values, printable, say
from tfsd.errors import shown

EXAMPLES = """  tfsd show star.png
  tfsd show *.png *.webp                   several files
  tfsd show star.png --json
"""
_FLAGS = {  # of `tfsd generate`, for what a recipe holds
    **{name: row.flag for name, row in with_option().items()},
    "model": "--model",
    "dtype": "--dtype",
    "numerics_override": "--numerics",
}
_DEFAULTS = {name: row.default for name, row in with_option().items()} | {"dtype": "float32", "numerics_override": None}
_KINDS = {"text": (str,), "choice": (str,), "whole": (int,), "real": (int, float), "image": ()}
_TYPES = {  # of what a command line is made of; None is fitting where there is none to give
    **{name: _KINDS[row.kind] for name, row in with_option().items()},
    **dict.fromkeys(("prompt", "numerics_override"), (str, type(None))),
    **dict.fromkeys(("model", "weights", "dtype", "image_sha256"), (str,)),
    **dict.fromkeys(("jit_compile", "custom_noise", "sample_image"), (bool,)),
}


def add_show(commands):
    """Adds the command to the parser."""
    parser = add_command(
        commands,
        "show",
        show,
        help="show how an image was made",
        description="Prints the recipe that an image file of tfsd carries, and the command that makes it again. Of files by "
        "other image generators it prints what their `parameters` say, and a command for an image of the same kind.",
        examples=EXAMPLES,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a PNG, JPEG or WebP file")
    parser.add_argument("--json", action="store_true", help="the recipe as JSON, alone; of several files, by their names")
    return parser


def show(args) -> int:
    """Runs the command. With several files, those that cannot be read are named and the others shown."""
    found, failed = {}, 0
    for file in args.files:
        try:
            found[file] = _read(file)
        except OSError as error:
            if len(args.files) == 1:
                raise
            failed = 1
            say(describe(error)[1])
    if args.json:
        recipes = {file: recipe | ({"unknown": foreign.unknown} if foreign else {}) for file, (recipe, foreign) in found.items()}
        print_json(recipes if len(args.files) > 1 else recipes[args.files[0]])
        return failed
    for file, (recipe, foreign) in found.items():
        if len(args.files) > 1:
            print(f"{printable(file)}:")
        _print_foreign(foreign) if foreign else _print_own(recipe)
    return failed


def _read(file: str):
    """Returns the recipe of an image, and what else another program's `parameters` say: None for images of tfsd.

    Raises: `ImageFileError`.
    """
    from tfsd.images.files import ImageFileError, NoRecipeError, foreign_recipe, parse_infotext, read_parameters, read_recipe

    try:
        recipe = read_recipe(file)
    except NoRecipeError:
        foreign = foreign_recipe(parse_infotext(read_parameters(file)))
        _check(foreign.recipe, file)
        return foreign.recipe, foreign
    if "pictures" in recipe and not recipe["pictures"]:
        raise ImageFileError(f"{file} is damaged: it is a grid whose recipe lists no images.")
    for one in recipe.get("pictures", [recipe]):
        _check(one, file)
    return recipe, None


def _print_own(recipe: dict):
    about_weights = functools.cache(_about_weights)  # a grid has many images of one model
    for one in recipe.get("pictures", [recipe]):
        print_values({name: value for name, value in one.items() if value is not None})
        print(f"again:  {command(one)}")
        note = about_weights(one.get("model"), one.get("weights"))
        print(f"        {printable(note)}\n" if note else "")


def _print_foreign(foreign):
    print_values({name: value for name, value in foreign.recipe.items() if value is not None})
    if foreign.unknown:
        print_values({"not read by tfsd": foreign.unknown})
    if foreign.syntax:
        print(f"the prompt has {', '.join(foreign.syntax)}, which tfsd reads as plain words")
    print(f"like it:  {command(foreign.recipe)}")
    print("          another program made it, from other noise for its seed: expect an image of the same kind, not the same\n")


def _check(recipe: dict, file: str):
    """Raises: `ImageFileError` for a recipe without a prompt, or with values that no recipe has."""
    from tfsd.images import ImageFileError

    if "prompt" not in recipe:
        raise ImageFileError(f"{file} is damaged: its recipe has no prompt.")
    for name, kinds in _TYPES.items():
        value = recipe.get(name)
        fits = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
        if name in recipe and not (fits and (not isinstance(value, float) or math.isfinite(value))):
            raise ImageFileError(f"{file} is damaged: its recipe has the {name} {shown(value)}.")


def command(recipe: dict) -> str:
    """Returns the command line that makes an image again; a note instead if no command line can.

    IMAGE stands for the image that it was made of, of which the recipe has the SHA-256.
    """
    if recipe["prompt"] is None or recipe.get("custom_noise"):
        return "(made in Python from its own context or noise)"
    if recipe.get("sample_image") is False:
        return "(made in Python from the mean of its image's latents)"
    words = ["tfsd", "generate"]
    words += ["--image=IMAGE"] if "image_sha256" in recipe else []
    for name, flag in _FLAGS.items():
        if name in recipe and recipe[name] != _DEFAULTS.get(name):
            words.append(f"{flag}={recipe[name]}")
    words += ["--no-jit"] if recipe.get("jit_compile") is False else []
    prompt = recipe["prompt"]
    if prompt == "-":
        return "(made in Python: its prompt would read standard input)"
    words += [] if prompt.strip() else ["--allow-empty"]
    words = [*words, "--", prompt] if prompt.startswith("-") else [*words[:2], prompt, *words[2:]]
    try:
        return " ".join(quoted(word) for word in words)
    except ValueError:
        return "(made in Python: its texts fit no command line)"


def quoted(word: str) -> str:
    """Returns a word as a shell takes it; what a terminal may not or cannot show, as the octal bytes of $'...'.

    Raises: `ValueError` for a zero byte or half a surrogate pair, which no command line can hold.
    """
    data = word.encode("utf-8", "surrogateescape")  # as Python took bytes that are no UTF-8 from its own command line
    if b"\0" in data:
        raise ValueError("A command line holds no zero byte.")
    if all(map(_shows, word)):
        return shlex.quote(word)
    return "$'" + "".join(_escaped(c) for c in word) + "'"


def _shows(character: str) -> bool:
    try:
        character.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return character.isprintable()


def _escaped(character: str) -> str:
    if character in "\\'":
        return "\\" + character
    if _shows(character):
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))


def _about_weights(model: str | None, made_with: str | None) -> str:
    """Returns a note where the model of a recipe's name is another than the one that made the image."""
    from tfsd.storage.files import sha256
    from tfsd.storage.h5 import CheckpointError
    from tfsd.storage.model_folders import resolve

    if model is None:
        return ""
    if not made_with:
        return "nothing tells which weights made it; the model of that name here may have others"
    try:
        here = sha256(resolve(model) / "manifest.json")[:12]
    except (CheckpointError, OSError, ValueError):
        return f"made with weights ({made_with[:12]}) of a model {shown(model, 300)} that is not here: pass --model FOLDER"
    if here != made_with:
        return f"made with other weights ({made_with[:12]}) than the model of that name here ({here}): pass --model FOLDER"
    return ""
