"""The quality report as a page for people: one HTML file that needs no other, no script and no network."""

import base64
import html
import io
import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tfsd.converters.device.quality import BEST_PSNR, LARGEST_HALF, SMALLEST_HALF

SHEET = "report.html"
AMPLIFIED = 8  # times that differences are shown
_LARGEST_SHOWN = 320  # pixels; larger pictures are shown reduced by a whole number
_MOST_SHOWN = 16
_TITLES = {"text_encoder": "Text encoder", "denoiser": "Denoiser", "decoder": "Decoder"}
_KINDS = {"one": "one object", "two": "two objects", "all": "all prompts"}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { color-scheme: light dark; --ground: #f6f6f3; --surface: #fff; --sunken: #efefea; --text: #22272a; --faint: #5d676b;
  --line: #d5d8d3; --accent: #2f5d62; --soft: #b9c9c9; --error: #9c2b23; --error-ground: #fbeceb; --notice: #6b4e00;
  --notice-ground: #fbf3dc; --good: #2c6340; --good-ground: #e4f2e8; }
@media (prefers-color-scheme: dark) { :root { --ground: #16191b; --surface: #1e2224; --sunken: #272c2e; --text: #e6e9e7;
  --faint: #a3adad; --line: #343b3d; --accent: #7fb8b5; --soft: #4a5b5d; --error: #f3aaa3; --error-ground: #3a2221;
  --notice: #ecd089; --notice-ground: #362e19; --good: #98d3ab; --good-ground: #1c3325; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1160px; padding: 24px 24px 48px; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; } h2 { margin: 40px 0 12px; font-size: 1.2rem; }
h3 { margin: 0 0 10px; font-size: 1rem; } p { margin: 4px 0 0; } .faint, figcaption, dt, th { color: var(--faint); }
header { display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: center; justify-content: space-between; }
.badge { padding: 4px 14px; border-radius: 99px; font-weight: 600; color: var(--good); background: var(--good-ground); }
.badge.bad { color: var(--error); background: var(--error-ground); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 20px; }
.card { padding: 14px 16px; border: 1px solid var(--line); border-radius: 10px; background: var(--surface); }
.tiles strong { display: block; font-size: 1.55rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); gap: 16px; }
.three { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; margin-bottom: 8px; }
figure { margin: 0; } figcaption { font-size: .8rem; } img { display: block; width: 100%; height: auto; border-radius: 6px; }
.wide { overflow-x: auto; padding: 4px 16px; } table { width: 100%; border-collapse: collapse; overflow-wrap: normal; }
th, td { padding: 8px 12px 8px 0; text-align: right; white-space: nowrap; border-top: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } thead th { border: 0; font-size: .85rem; font-weight: 500; }
tbody th { color: inherit; font-weight: 600; }
.layers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); gap: 16px; }
.tiles + p, .card + p, .layers + p, .sheet + p { margin-top: 10px; }
.bar { margin-top: 8px; font-size: .85rem; } .bar div { display: flex; gap: 12px; justify-content: space-between; }
.bar b { font-weight: 500; font-variant-numeric: tabular-nums; white-space: nowrap; }
.track { display: block; height: 8px; margin-top: 2px; border-radius: 4px; background: var(--sunken); }
.track i { display: block; height: 8px; min-width: 2px; border-radius: 4px; background: var(--accent); }
.track i.before { background: var(--soft); } .notice { margin: 14px 0 0; padding: 8px 12px; border-radius: 8px; font-size: .85rem;
  color: var(--notice); background: var(--notice-ground); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; } dd { margin: 0; }
pre { margin: 14px 0 0; padding: 12px; border-radius: 8px; background: var(--sunken); white-space: pre-wrap; }
@media (max-width: 600px) { body { padding: 16px 14px 32px; } .wide th, .wide td { padding-right: 10px; font-size: .85rem; }
  .tiles { grid-template-columns: 1fr 1fr; } .tiles strong { font-size: 1.25rem; } }
"""


def write_sheet(folder: Path, report: Mapping, ours: np.ndarray, theirs: np.ndarray) -> Path:
    """Writes the report on an export to `folder`, and returns the path; the same report gives the same bytes.

    `report` has "model", "quantize", "pictures" (of `compare_pictures`), "seed", "num_steps", "sampler" and "guidance_scale",
    and, where they are known, "summary" (of the recipe), "size" (height, width), "tfsd" (the version), "bytes" (of
    all models), "gates" ({"what", "found", "limit", "passed"}, the last a bool), "parts" (of `compare_parts`) and "adherence"
    (of `measure_adherence`).
    Shapes: ours, theirs uint8 [N, H, W, 3]: the export's pictures, and those in float32.
    """
    sections = (_head, _pictures_of(ours, theirs), _parts, _layers, _adherence, _reproduce)
    title = _text(f"{report['model']}, {report['quantize']}: what quantization costs")
    page = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        *filter(None, (section(report) for section in sections)),
        "</body>\n</html>\n",
    ]
    path = Path(folder) / SHEET
    path.write_bytes("\n".join(page).encode("utf-8", "backslashreplace"))
    return path


def _text(value) -> str:
    """Returns text that HTML shows as it is, without what would not be shown, or would turn around what follows."""
    return html.escape("".join(letter if letter.isprintable() else " " for letter in str(value)))


def _head(report: Mapping) -> str:
    gates, pictures = report.get("gates", ()), report["pictures"]
    tiles = []
    if sizes := _sizes(report):
        before, after = sizes
        smaller = f"{_megabytes(before)} in float32: {before / after:.1f} times smaller"
        tiles.append(_tile("Models", _megabytes(after), smaller if before > after else "as in float32"))
    worst, like = (min(pictures, key=lambda one: one[name]) for name in ("psnr", "ssim"))
    tiles.append(_tile("Worst PSNR", _decibels(worst["psnr"]), _text(worst["prompt"])))
    tiles.append(_tile("Worst SSIM", f"{like['ssim']:.4f}", _text(like["prompt"])))
    if adherence := report.get("adherence"):
        both = adherence["all"]
        change = f"{_percent(both['before'])} in float32, of {both['count']} prompts"
        tiles.append(_tile("Prompts followed", _percent(both["after"]), change))
    badge = ""
    if gates:
        passed = all(gate["passed"] for gate in gates)
        badge = f'<span class="badge{"" if passed else " bad"}">{"Gate passed" if passed else "Gate failed"}</span>'
    shape = " · {1} × {0} pixels".format(*report["size"]) if "size" in report else ""
    told = "; ".join(f"{gate['what']} {gate['found']}, {gate['limit']}{'' if gate['passed'] else ': failed'}" for gate in gates)
    return (
        f"<header><div><h1>{_text(report['model'])} · {_text(report['quantize'])}</h1>"
        f'<p class="faint">{_text(report.get("summary", "")) + shape}</p></div>{badge}</header>\n'
        f'<div class="tiles">{"".join(tiles)}</div>' + (f'\n<p class="faint">Gate: {_text(told)}.</p>' if told else "")
    )


def _sizes(report: Mapping) -> tuple[int, int] | None:
    """Returns the bytes of all models in float32 and in the export, if they are known."""
    sizes = [part["bytes"] for part in report.get("parts", {}).values()]
    before, after = (sum(one[name] for one in sizes) for name in ("float32", "quantized"))
    every = report.get("bytes", after)  # with what is the same in both
    return (before + every - after, every) if every else None


def _tile(name: str, value: str, more: str) -> str:
    return f'<div class="card"><span class="faint">{name}</span><strong>{value}</strong><small class="faint">{more}</small></div>'


def _pictures_of(ours: np.ndarray, theirs: np.ndarray) -> Callable[[Mapping], str]:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    difference = np.minimum(np.abs(ours.astype(int) - theirs) * AMPLIFIED, 255).astype(np.uint8)
    factor = math.ceil(max(ours.shape[1:3]) / _LARGEST_SHOWN)
    shown = {"float32": theirs, "this export": ours, f"difference × {AMPLIFIED}": difference}

    def section(report: Mapping) -> str:
        cards = []
        for i, one in enumerate(report["pictures"][:_MOST_SHOWN]):
            prompt = _text(one["prompt"])
            figures = "".join(
                f'<figure><img alt="{prompt}: {name}" src="{_data(pictures[i], factor)}"><figcaption>{name}</figcaption></figure>'
                for name, pictures in shown.items()
            )
            told = f"PSNR {_decibels(one['psnr'])} · SSIM {one['ssim']:.4f} · largest difference {one['largest_difference']}"
            told += f" · {_percent(one['differing'])} of values differ"
            told = f'<bdi>{prompt}</bdi><p class="faint"><small>{told}</small></p>'
            cards.append(f'<div class="card"><div class="three">{figures}</div>{told}</div>')
        reduced = f'<p class="faint">Shown at 1/{factor} of their size.</p>' if factor > 1 else ""
        return f'<h2>The same pictures, before and after</h2>\n<div class="sheet">{"".join(cards)}</div>{reduced}'

    return section


def _data(picture: np.ndarray, factor: int) -> str:
    image, file = Image.fromarray(picture).reduce(factor), io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _parts(report: Mapping) -> str:
    if not (parts := report.get("parts")):
        return ""
    rows = []
    for name, part in parts.items():
        quality = f"{_decibels(part['psnr'])} · {part['ssim']:.4f}" if "psnr" in part else "–"
        outputs = ", ".join(f"{_text(output)} {_percent(error, 2)}" for output, error in part["outputs"].items())
        largest = _number(part["largest_activation"]) if "largest_activation" in part else "–"
        sizes = (_megabytes(part["bytes"][key]) for key in ("float32", "quantized"))
        rows.append([_title(name), outputs, quality, largest, *sizes, str(part["inputs"])])
    head = ("Part", "Relative error of outputs", "PSNR · SSIM", "Largest value inside", "float32", "This export", "Inputs")
    note = "Each part by itself, given what it is given while real pictures are drawn. Relative error: root mean square of the "
    note += "difference over that of float32."
    return f'<h2>Part by part</h2>\n{_table(head, rows)}\n<p class="faint">{note}</p>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    names = "".join(f'<th scope="col">{name}</th>' for name in head)
    lines = "".join(f'<tr><th scope="row">{first}</th>{"".join(f"<td>{one}</td>" for one in rest)}</tr>' for first, *rest in rows)
    return f'<div class="card wide" tabindex="0"><table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table></div>'


def _layers(report: Mapping) -> str:
    parts = report.get("parts", {})
    most = max((one["relative_error"] for part in parts.values() for one in part.get("layers", ())), default=0)
    cards = []
    for name, part in parts.items():
        bars = [
            _bar(_path(one["layer"]), _percent(one["relative_error"], 2), one["relative_error"] / (most or 1))
            for one in part.get("layers", ())
        ]
        if "layers_left_out" in part:
            bars.append(f'<p class="faint">Not measured: {_text(part["layers_left_out"])}.</p>')
        cards.append(f'<div class="card"><h3>{_title(name)}</h3>{"".join(bars)}{_half(part)}</div>')
    if not cards:
        return ""
    note = '<p class="faint">Relative error of what a layer returns, all before it being quantized, too. Bars share a scale.</p>'
    return f'<h2>Worst layers</h2>\n<div class="layers">{"".join(cards)}</div>\n{note}'


def _bar(name: str, value: str, share: float, kind: str = "") -> str:
    width = 100 * min(max(share, 0), 1)
    return (
        f'<div class="bar"><div><span>{name}</span><b>{value}</b></div>'
        f'<span class="track"><i class="{kind}" style="width: {width:.1f}%"></i></span></div>'
    )


def _half(part: Mapping) -> str:
    """Warns of what accelerators that compute in float16 cannot hold."""
    notes = []
    limits = {"over_half": f"large for float16, which ends at {_number(LARGEST_HALF)}"}
    limits["under_half"] = f"small for float16 to hold all their digits, below {_number(SMALLEST_HALF)}"
    for key, words in limits.items():
        if layers := part.get(key):
            worst = sorted(layers.items(), key=lambda one: -abs(math.log(one[1])))[:3]
            named = ", ".join(f"{_path(layer)} {_number(value)}" for layer, value in worst)
            more = f" and {len(layers) - len(worst)} more" if len(layers) > len(worst) else ""
            notes.append(f'<p class="notice">Values inside that are too {words}: {named}{more}.</p>')
    return "".join(notes)


def _adherence(report: Mapping) -> str:
    if not (adherence := report.get("adherence")):
        return ""
    cards = []
    for kind, one in {**adherence["kinds"], "all": adherence["all"]}.items():
        bars = _bar("float32", _percent(one["before"]), one["before"], "before")
        bars += _bar("this export", _percent(one["after"]), one["after"])
        told = f"{one['difference']:+.1f} ± {one['margin']:.1f} points: {one['lost']} lost, {one['gained']} gained"
        name = f"{_KINDS.get(kind, _text(kind)).capitalize()} · {one['count']} prompts"
        cards.append(f'<div class="card"><h3>{name}</h3>{bars}<p class="faint"><small>{told}</small></p></div>')
    note = "Pictures in which a checker finds every object in its shape and colour, of prompts that training never saw; "
    note += f"seed {_text(adherence['seed'])}, {_text(adherence['num_steps'])} steps, the same noise for both. ± is 95 %."
    return f'<h2>Does it still follow the prompt?</h2>\n<div class="layers">{"".join(cards)}</div>\n<p class="faint">{note}</p>'


def _reproduce(report: Mapping) -> str:
    facts = {
        "Seed": f"{report['seed']}, index 0 for the first picture, 1 for the next",
        "Steps": report["num_steps"],
        "Sampler": report["sampler"],
        "Guidance": report["guidance_scale"],
        "tfsd": report.get("tfsd"),
    }
    shown = "".join(f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in facts.items() if value is not None)
    options = {"seed": "seed", "steps": "num_steps", "scale": "guidance_scale", "sampler": "sampler"}
    given = " ".join(f"--{name} {shlex.quote(str(report[key]))}" for name, key in options.items())
    command = f"tfsd generate {given} --device-bundle . -- {shlex.quote(str(report['pictures'][0]['prompt']))}"
    return f'<h2>Draw them again</h2>\n<div class="card"><dl>{shown}</dl><pre>{_text(command)}</pre></div>'


def _path(layer: str) -> str:
    return _text(layer).replace("/", "/<wbr>")  # where a line may break


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= value < 1e9 else f"{value:.3g}"


def _title(part: str) -> str:
    return _TITLES.get(part) or _text(part)


def _decibels(value: float) -> str:
    return f"{'≥ ' * (value >= BEST_PSNR)}{value:.1f} dB"


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %" if share < 100 else "> 9999 %"
