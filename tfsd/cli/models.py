"""`tfsd models`: which models there are."""

from tfsd.cli.parsing import add_command
from tfsd.cli.terminal import print_json, print_table

EXAMPLES = """  tfsd models
  tfsd models --json
"""


def add_models(commands):
    """Adds the command to the parser."""
    parser = add_command(
        commands,
        "models",
        models,
        help="list the models that have a name",
        description="Lists the models that --model takes by name. It also takes the path of a model folder from `tfsd convert`.",
        examples=EXAMPLES,
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    return parser


def models(args) -> int:
    """Runs the command."""
    from tfsd.storage.model_folders import list_models

    entries = list_models()
    if args.json:
        print_json([entry._asdict() | {"path": str(entry.path) if entry.path else None} for entry in entries])
        return 0
    rows = [(e.name, e.state, f"{e.bytes / 1e6:.1f} MB" if e.bytes else "", e.licence, str(e.path or "")) for e in entries]
    print_table(rows, ("name", "state", "size", "licence", "folder"))
    return 0
