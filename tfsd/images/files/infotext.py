"""Recipes as the text that image generators write into their files and read from each other's: writing and reading it.

Its lines are the prompt, "Negative prompt: ..." if there is one, and last "Steps: 20, Sampler: Euler a, CFG scale: 7, ...".
Source: the form of AUTOMATIC1111's stable-diffusion-webui, which other programs have taken over.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tfsd.arguments.table import ARGUMENTS
from tfsd.samplers.names import COMMUNITY_NAMES
from tfsd.samplers.plans import find_sampler

NEGATIVE = "Negative prompt:"
_LABELS = {name: ARGUMENTS[name].other_names["webui"] for name in ("num_steps", "sampler", "guidance_scale", "seed")}
_OWN_TEXTS = {"Numerics": "numerics", "Numerics override": "numerics_override", "Dtype": "dtype", "Tensorflow": "tensorflow"}
_NOT_LISTED = {"prompt", "negative_prompt", "eta", "height", "width", "weights", "model", "tfsd", *_LABELS}
# Kind of argument -> what its values look like, and their type.
_VALUES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "whole": (r"-?[0-9]{1,19}", int),
    "real": (r"[0-9]{1,9}(\.[0-9]{1,20})?", float),
    "choice": (r".+", str),
    "text": (r".*", str),
    "switch": (r"True|False", lambda text: text == "True"),
    "image": (r"(?!)", str),  # stands in no recipe
}
_MAX_LINE = 65536  # characters of the last line
# A key, then a value in quotes, in braces, or up to the next comma. A key's length is bounded: else long lines take long.
_PAIR = re.compile(r'(\w[\w \-/]{1,60}):\s*("(?:\\.|[^\\"])*"|\{[^{}]*\}|[^,]*)(?:,|$)')
_LEAST_PAIRS = 3  # as theirs: with fewer, the last line belongs to the prompt
_OWN_SCHEDULES = {"DPM++ 2M": "Karras", "DPM++ 2M SDE": "Exponential", "DPM2": "Karras", "DPM2 a": "Karras"}
_DEFAULT_SCHEDULES = {"Automatic": _OWN_SCHEDULES, "Uniform": {}, "Normal": {}}  # since their version 1.9
_SYNTAX = {  # what other programs understand in a prompt and tfsd reads as plain words
    "extra networks": re.compile(r"<(?:lora|lyco|hypernet):[^<>]{1,200}>"),
    "weights of words": re.compile(r"\([^()]{1,200}:-?[0-9.]{1,9}\)|\({2,}|\[{2,}"),
    "prompt editing": re.compile(r"\[[^\[\]]{0,200}[:|][^\[\]]{0,200}\]"),
    "several prompts in one": re.compile(r"\b(?:AND|BREAK)\b"),
}


class Infotext(NamedTuple):
    """What such a text says; `pairs` are those of its last line, as they stand there."""

    prompt: str
    negative_prompt: str
    pairs: dict[str, str]


class Foreign(NamedTuple):
    """A recipe as far as an infotext gives one, and what else stands there: pairs, and syntax in the prompts."""

    recipe: dict[str, Any]
    unknown: dict[str, str]
    syntax: list[str]


def infotext(recipe: Mapping[str, Any]) -> str:
    """Returns a recipe as such a text; of a grid that of its first picture, as other programs do."""
    if "pictures" in recipe:
        first = recipe["pictures"][0] if recipe["pictures"] else {}
        return infotext({**first, "grid_pictures": len(recipe["pictures"]), "grid_columns": recipe.get("columns")})
    lines = [str(recipe.get("prompt") or "")]
    if recipe.get("negative_prompt"):
        lines.append(f"{NEGATIVE} {recipe['negative_prompt']}")
    return "\n".join([*lines, ", ".join(f"{label}: {_written(value)}" for label, value in _pairs(recipe).items())])


def _pairs(recipe: Mapping[str, Any]) -> dict[str, Any]:
    pairs = {label: recipe.get(name) for name, label in _LABELS.items()}
    pairs["Sampler"] = COMMUNITY_NAMES.get(str(pairs["Sampler"]), pairs["Sampler"])
    if "width" in recipe and "height" in recipe:
        pairs["Size"] = f"{recipe['width']}x{recipe['height']}"
    pairs["Model hash"] = recipe.get("weights") or None
    pairs["Model"] = re.split(r"[\\/]", str(recipe["model"]).rstrip("\\/"))[-1] if recipe.get("model") else None
    pairs["Eta DDIM"] = recipe.get("eta") or None  # theirs: "Eta" would change ancestral samplers
    rest = {_own_label(name): value for name, value in recipe.items() if name not in _NOT_LISTED}
    pairs |= {label: value for label, value in rest.items() if label not in pairs}
    pairs["Version"] = f"tfsd {recipe['tfsd']}" if recipe.get("tfsd") else None
    return {label: value for label, value in pairs.items() if value is not None}


def _own_label(name: str) -> str:
    """Returns the key of what other programs have no key for."""
    return name.replace("_", " ").capitalize()


def _written(value: object) -> str:
    """Returns a value as it stands behind its key; what holds a comma, a colon or a line's end as a JSON string."""
    text = repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:\n"]', text) else text


def parse_infotext(text: str) -> Infotext:
    """Returns the parts of such a text, from whichever program; one without a last line of pairs is all prompt."""
    *lines, last = text.strip().split("\n")
    pairs = {key.strip(): _unquoted(value.strip()) for key, value in _PAIR.findall(last)} if len(last) <= _MAX_LINE else {}
    if len(pairs) < _LEAST_PAIRS:
        lines, pairs = [*lines, last], {}
    lines = [line.strip() for line in lines]
    begin = next((i for i, line in enumerate(lines) if line.startswith(NEGATIVE)), len(lines))
    negative = "\n".join(lines[begin:]).removeprefix(NEGATIVE).strip()
    return Infotext("\n".join(lines[:begin]), negative, pairs)


def _unquoted(text: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def foreign_recipe(found: Infotext) -> Foreign:
    """Returns a text of another program, or of this one, as a recipe: of its names and values, those that it gives.

    Noise for a seed differs between programs: such a recipe makes an image of the same kind, not the same image.
    """
    recipe: dict[str, Any] = {"prompt": found.prompt, "negative_prompt": found.negative_prompt}
    unknown = dict(found.pairs)
    own = unknown.get("Version", "").startswith("tfsd ")
    for name, row in ARGUMENTS.items():
        label = row.other_names.get("webui", _own_label(name) if own else "")
        pattern, kind = _VALUES[row.kind]
        if name != "sampler" and label in unknown and re.fullmatch(pattern, unknown[label], re.DOTALL):
            recipe[name] = kind(unknown.pop(label))
    if size := re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", unknown.get("Size", "")):
        recipe |= {"width": int(size[1]), "height": int(size[2])}
        del unknown["Size"]
    if (sampler := _sampler(unknown)) is not None:
        recipe["sampler"] = sampler
        unknown.pop("Schedule type", None)
        del unknown["Sampler"]
    if own:
        names = {"Model": "model", "Model hash": "weights", **_OWN_TEXTS}
        recipe |= {name: unknown.pop(label) for label, name in names.items() if label in unknown}
        recipe["tfsd"] = unknown.pop("Version").removeprefix("tfsd ")
        if unknown.get("Jit compile") in ("True", "False"):
            recipe["jit_compile"] = unknown.pop("Jit compile") == "True"
    prompts = f"{found.prompt}\n{found.negative_prompt}"
    return Foreign(recipe, unknown, [] if own else [name for name, sign in _SYNTAX.items() if sign.search(prompts)])


def _sampler(pairs: Mapping[str, str]) -> str | None:
    """Returns the key of the sampler that a text names, None for one that is not here."""
    name, schedule = pairs.get("Sampler", ""), pairs.get("Schedule type", "")
    if schedule in _DEFAULT_SCHEDULES:
        schedule = _DEFAULT_SCHEDULES[schedule].get(name, "")
    try:
        return find_sampler(f"{name} {schedule}".strip())
    except ValueError:
        return None
