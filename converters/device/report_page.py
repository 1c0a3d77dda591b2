"""The quality report as a page for people: one HTML file that needs no other file, no script and no network.

`report.html` in this folder is its template.
"""

import base64
import io
import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tfsd.converters.device.quality import BEST_PSNR, LARGEST_HALF, SMALLEST_HALF

SHEET = "report.html"
AMPLIFIED = 8  # factor by which differences are shown
_LARGEST_SHOWN = 320  # pixels; larger images are shown reduced by a whole number
_MOST_SHOWN = 16
_TITLES = {"text_encoder": "Text encoder", "denoiser": "Denoiser", "decoder": "Decoder"}
_KINDS = {"one": "one object", "two": "two objects", "all": "all prompts"}
_DEFAULTS: dict[str, Any] = {"summary": "", "size": None, "tfsd": None, "gates": (), "parts": {}, "adherence": None}


def write_sheet(folder: Path, report: Mapping, ours: np.ndarray, theirs: np.ndarray) -> Path:
    """Writes the report on an export to `folder`, and returns the path; the same report gives the same bytes.

    `report` has "model", "quantize", "pictures" (from `compare_images`), "seed", "num_steps", "sampler" and "guidance_scale",
    and, where they are known, "summary" (the recipe's), "size" (height, width), "tfsd" (the version), "bytes" (of
    all models), "gates" ({"what", "found", "limit", "passed"}, the last a bool), "parts" (from `compare_parts`) and "adherence"
    (from `measure_adherence`).
    Shapes: ours, theirs uint8 [N, H, W, 3]: the export's images, and those in float32.
    """
    before, after = _sizes(report)
    factor = math.ceil(max(ours.shape[1:3]) / _LARGEST_SHOWN)
    layers = [layer for part in report.get("parts", {}).values() for layer in part["layers"]]
    page = _template().render(
        _DEFAULTS | dict(report),
        before=before,
        after=after,
        shown=list(zip(report["pictures"][:_MOST_SHOWN], _figures(ours, theirs, factor))),
        factor=factor,
        largest_error=max((layer["relative_error"] for layer in layers), default=0),
        titles=_TITLES,
        kinds=_KINDS,
        command=_command(report),
    )
    path = Path(folder) / SHEET
    path.write_text(page, encoding="utf-8", newline="\n")
    return path


def _template():
    import jinja2  # here, since only exports need it

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_printable,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = {"megabytes": _megabytes, "decibels": _decibels, "percent": _percent, "number": _number, "path": _path}
    environment.filters |= filters | {"outside_half": _outside_half}
    return environment.get_template("report.html")


def _printable(value):
    """Returns a value without letters that would not be shown, or would reverse the text behind them."""
    if not isinstance(value, str) or hasattr(value, "__html__") or value.isprintable():
        return value
    return "".join(letter if letter.isprintable() else " " for letter in value)


def _path(layer: str):
    """Returns the path of a layer with places where a line may break."""
    from markupsafe import Markup

    return Markup("/<wbr>").join(map(_printable, layer.split("/")))


def _sizes(report: Mapping) -> tuple[int, int]:
    """Returns the bytes of all models in float32 and in the export; zeros if they are not known."""
    sizes = [part["bytes"] for part in report.get("parts", {}).values()]
    before, after = (sum(one[name] for one in sizes) for name in ("float32", "quantized"))
    every = report.get("bytes", after)  # with the models that are equal in both
    return before + every - after, every


def _figures(ours: np.ndarray, theirs: np.ndarray, factor: int) -> Iterator[list[tuple[str, str]]]:
    """Yields the name and the data of each figure, image by image."""
    for our, their in zip(ours, theirs):
        difference = np.minimum(np.abs(our.astype(int) - their) * AMPLIFIED, 255).astype(np.uint8)
        images = {"float32": their, "this export": our, f"difference × {AMPLIFIED}": difference}
        yield [(name, _address(image, factor)) for name, image in images.items()]


def _address(image: np.ndarray, factor: int) -> str:
    file = io.BytesIO()
    Image.fromarray(image).reduce(factor).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _outside_half(part: Mapping) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """Yields what float16, in which some accelerators compute, cannot hold: a description, and the layers, worst first."""
    limits = {"over_half": f"large for float16, which ends at {_number(LARGEST_HALF)}"}
    limits["under_half"] = f"small for float16 to hold all their digits, below {_number(SMALLEST_HALF)}"
    for key, words in limits.items():
        if layers := part.get(key):
            yield words, sorted(layers.items(), key=lambda one: -abs(math.log(one[1])))


def _command(report: Mapping) -> str:
    """Returns the command that makes the first image again."""
    options = {"seed": "seed", "steps": "num_steps", "scale": "guidance_scale", "sampler": "sampler"}
    given = " ".join(f"--{name} {shlex.quote(str(report[key]))}" for name, key in options.items())
    return f"tfsd generate {given} --device-bundle . -- {shlex.quote(str(report['pictures'][0]['prompt']))}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= value < 1e9 else f"{value:.3g}"


def _decibels(value: float) -> str:
    return f"{'≥ ' * (value >= BEST_PSNR)}{value:.1f} dB"


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %" if share < 100 else "> 9999 %"
