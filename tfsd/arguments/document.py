"""The table of request arguments as JSON, for programs that are not Python: `python -m tfsd.arguments.document` writes its files.

The web page imports it as a module of JavaScript; the apps' tests read it.
"""

import json
from pathlib import Path

from tfsd.arguments.options import ServerOptions
from tfsd.arguments.table import ARGUMENTS, DEVICE, GRAPH, PYTHON, Argument, rows_of

ROOT = Path(__file__).parents[2]
_PROGRAMS = {"kerascv": "KerasCV", "compvis": "CompVis", "diffusers": "diffusers"}
_SCRIPT = "// The arguments of a request. Written by `python -m tfsd.arguments.document`.\n\nexport const ARGUMENTS = "
_PAGE = """# Arguments

The arguments of a request have the same names in Python (`text_to_image`, `image_to_image`, `Client.text_to_image`), in the
inputs of a [server](serving.md) and, with few exceptions, on the command line. `prompt`, `image`, `batch_size` and `seed` can be
given by position in Python, all others by name. A list has one value per image. `image`, `strength`, `fit` and `sample_image`
belong to `image_to_image`.

{rows}

These are arguments of a call and not of the request:

{calls}

KerasCV's names are accepted in Python; for those of other programs the error names ours.
This page is written by `python -m tfsd.arguments.document`.
"""


def described_arguments() -> dict[str, dict]:
    """Returns what other programs need to know of each argument."""
    return {
        name: {
            "kind": row.kind,
            "column": row.column or None,
            "default": row.default,
            "modelDefault": row.of_model is not None,
            "low": str(row.low) if abs(row.low) > 2**53 else row.low,  # JavaScript's numbers end there
            "high": str(row.high) if row.high > 2**53 else row.high,
            "choices": list(row.choices),
            "targets": list(row.targets),
            "tasks": list(row.tasks),
            "inRecipe": row.in_recipe,
            "flag": row.flag if row.flags else None,
            "help": row.help,
        }
        for name, row in ARGUMENTS.items()
    }


def texts() -> dict[str, str]:
    """Returns the text of each file of the repository that is written from the table."""
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in described_arguments().items())
    document = f"{{\n{rows}\n}}"
    return {
        "serving/server/page/arguments.js": f"{_SCRIPT}{document};\n",
        "mobile/arguments.json": f"{document}\n",
        "docs/arguments.md": _PAGE.format(rows=_markdown(), calls=_calls()),
    }


def _calls() -> str:
    rows = {name: row for name, (_, row) in rows_of(ServerOptions).items() if name not in ARGUMENTS}
    where = {"timeout": " (clients of a server)"}
    return "\n".join(f"- `{name}`: {row.help}{where.get(name, '')}." for name, row in rows.items())


def _markdown() -> str:
    titles = ("argument", "what", "values", "default", "command line", "where", "other names")
    rows = [titles, ["---"] * len(titles), *(_cells(name, row) for name, row in ARGUMENTS.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _cells(name: str, row: Argument) -> tuple[str, ...]:
    listed = {"text": "text", "choice": ", ".join(row.choices), "switch": "True or False", "image": "a file or an array"}
    values = listed.get(row.kind, f"{row.low} to {row.high}")
    values += "; or a list" if row.per_image else ""
    own = "required" if row.required else row.flag_default or ("none" if row.default in (None, "") else f"`{row.default}`")
    places = {PYTHON: "Python", GRAPH: "servers", DEVICE: "phones"}
    where = "everywhere" if len(row.targets) == len(places) else ", ".join(places[one] for one in row.targets)
    flags = ", ".join(f"`{flag}`" for flag in row.flags)
    others = ", ".join(f"`{theirs}` ({_PROGRAMS[one]})" for one, theirs in row.other_names.items() if one in _PROGRAMS)
    return (
        f"`{name}`",
        row.help,
        values,
        "the model's" if row.of_model else own,
        flags,
        where,
        others,
    )


if __name__ == "__main__":
    for name, text in texts().items():
        (ROOT / name).write_text(text, encoding="utf-8")
