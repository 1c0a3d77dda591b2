"""`tfsd show`: the recipe that a picture carries."""

import shlex

from tfsd.cli.parsing import add_command
from tfsd.cli.terminal import print_json, print_values, printable

EXAMPLES = """  tfsd show star.png
  tfsd show star.png --json
"""
_FLAGS = {  # of `tfsd generate`, for what a recipe holds
    "negative_prompt": "--negative",
    "seed": "--seed",
    "index": "--index",
    "num_steps": "--steps",
    "guidance_scale": "--scale",
    "sampler": "--sampler",
    "eta": "--eta",
    "height": "--height",
    "width": "--width",
    "model": "--model",
    "dtype": "--dtype",
}
_DEFAULTS = {"negative_prompt": "", "index": 0, "eta": 0.0, "dtype": "float32"}


def add_show(commands):
    """Adds the command to the parser."""
    parser = add_command(
        commands,
        "show",
        show,
        help="show how a picture was made",
        description="Prints the recipe that a PNG file written by tfsd carries, and the command that makes it again.",
        examples=EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", help="a PNG file")
    parser.add_argument("--json", action="store_true", help="the recipe as JSON, alone")
    return parser


def show(args) -> int:
    """Runs the command."""
    from tfsd.images import read_recipe

    recipe = read_recipe(args.file)
    if args.json:
        print_json(recipe)
        return 0
    pictures = recipe.get("pictures", [recipe])
    for one in pictures if isinstance(pictures, list) else []:
        if isinstance(one, dict):
            print_values(one)
            print(f"again:  {printable(command(one))}\n")
    return 0


def command(recipe: dict) -> str:
    """Returns the command line that makes a picture again; a note instead if no command line can."""
    if not isinstance(recipe.get("prompt"), str) or recipe.get("custom_noise"):
        return "(made in Python from its own context or noise)"
    words = ["tfsd", "generate"]
    for name, flag in _FLAGS.items():
        if name in recipe and recipe[name] != _DEFAULTS.get(name):
            words.append(f"{flag}={recipe[name]}")
    words += ["--numerics=kerascv"] if recipe.get("numerics") == "kerascv" else []  # no model is changed to compvis
    words += ["--no-jit"] if recipe.get("jit_compile") is False else []
    prompt = recipe["prompt"]
    return shlex.join([*words, "--", prompt] if prompt.startswith("-") else [*words[:2], prompt, *words[2:]])
