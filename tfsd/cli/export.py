"""`tfsd export` and `tfsd verify`: writes a model for TensorFlow Serving or for phones, and checks such an export."""

import importlib.util
import itertools
from pathlib import Path

from tfsd.cli.parsing import UsageError, add_command, integer, size
from tfsd.cli.targets import require_target
from tfsd.cli.terminal import print_path, print_table, quiet_tensorflow, say, stages
from tfsd.errors import CheckpointError
from tfsd.progress import aside
from tfsd.specs.limits import DTYPES, QUANTIZATIONS

EXPORT_EXAMPLES = """  tfsd export saved_model --out models                       writes models/tiny/1
  tfsd export saved_model --out models --no-xla              the next version, for servers without their XLA flag
  tfsd export saved_model --model sd-1.4 --out models --size 512x512 --size 512x768 --dtype bfloat16
  tfsd export saved_model --model sd-1.4 --out models --batching fused --batch-sizes 1 2 4 8       for a GPU
  tfsd export tflite --quantize dynamic --out bundle         four TFLite files for a phone, with a report on their quality
  tfsd generate "a red star" --device-bundle bundle          draws with them here, as a phone does
"""
VERIFY_EXAMPLES = """  tfsd verify models/tiny/1      a SavedModel
  tfsd verify bundle             TFLite files
"""
_SAVED_MODEL_ONLY = {"version": None, "batch_sizes": [1, 2, 4, 8], "batching": "exact", "dtype": "float32", "no_xla": False}
_REPORT = {"report_pictures": "pictures", "report_steps": "steps", "report_prompts": "adherence"}
_NEEDED = ("ai_edge_litert", "ai_edge_quantizer", "jinja2")  # for TFLite files
_TFLITE_ONLY = {"quantize": "none", "overwrite": False, **dict.fromkeys(_REPORT)}


def add_export(commands):
    """Adds the command `export` to the parser."""
    parser = add_command(
        commands,
        "export",
        export,
        help="write a model for TensorFlow Serving or a phone",
        description="Writes a model for deployment. saved_model: a SavedModel in DIR/NAME/VERSION, which takes prompts and "
        "returns PNG files; `tfsd serve DIR` and TensorFlow Serving serve it. tflite: the bundle DIR, TFLite files for phones. "
        "An export appears only after its images were compared with those of Python.",
        examples=EXPORT_EXAMPLES,
    )
    add = parser.add_argument
    add("target", choices=("saved_model", "tflite"), help="what to write")
    add("--model", default="tiny", help="a name from `tfsd models`, or a model folder (default: tiny)")
    add("--out", required=True, metavar="DIR", help="the folder of models, or of the bundle")
    add("--version", type=integer(1), default=None, help="number of the version (default: the next one)")
    add("--size", type=size, action="append", metavar="HxW", help="height x width that requests may ask for; repeat the "
        "option for several sizes, the first is the default (default: the model's)")  # fmt: skip
    add("--batch-sizes", type=integer(1, 64), nargs="+", default=[1, 2, 4, 8], metavar="N", help="sizes of batches: a "
        "request is padded to the next of these, and the last is the limit (default: 1 2 4 8)")  # fmt: skip
    add("--max-steps", type=integer(1, 1000), default=None, help="most steps of a request (default: 100, for tflite 50)")
    add("--batching", choices=("exact", "fused"), default="exact", help="exact: every image is computed alone, several side "
        "by side, and has the same bytes in any batch; fused: a batch at once, for GPUs (default: exact)")  # fmt: skip
    add("--dtype", choices=DTYPES, default="float32", help="of weights and matrix products, except in the "
        "VAE (default: float32)")  # fmt: skip
    add("--no-xla", action="store_true", help="do not compile; TensorFlow Serving compiles only when started with "
        "--xla_cpu_compilation_enabled (or --xla_gpu_compilation_enabled), and refuses compiled exports otherwise")  # fmt: skip
    add("--quantize", choices=QUANTIZATIONS, default="none", help=_recipes)
    add("--report-pictures", type=integer(1, 64), default=None, metavar="N", help="tflite only: images that the report on "
        "quality compares (default: 4)")  # fmt: skip
    add("--report-steps", type=integer(1, 1000), default=None, metavar="N", help="steps of each of them (default: 10)")
    add("--report-prompts", type=integer(0, 10_000), default=None, metavar="N", help="prompts with one object, and as many with "
        "two, by which the report on tiny counts how many images follow their prompt (default: 48)")  # fmt: skip
    add("--overwrite", action="store_true", help="tflite only: replace a bundle")
    add("--quiet", action="store_true", help="no progress and no plan")
    return parser


def _recipes() -> str:
    from tfsd.converters.device.recipes import RECIPES

    return f"tflite only. {'; '.join(f'{name}: {recipe.summary}' for name, recipe in RECIPES.items())} (default: none)"


def add_verify(commands):
    """Adds the command `verify` to the parser."""
    parser = add_command(
        commands,
        "verify",
        verify,
        help="check the files of an export, and its reference image",
        description="Checks the files of an export and draws its reference image again, on this machine and with this "
        "TensorFlow or LiteRT. Exits with 1 if a file is damaged or the image differs.",
        examples=VERIFY_EXAMPLES,
    )
    parser.add_argument("folder", metavar="DIR", help="a version of a SavedModel (models/tiny/1) or a bundle for phones")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def export(args) -> int:
    """Runs the command `export`."""
    foreign = _TFLITE_ONLY if args.target == "saved_model" else _SAVED_MODEL_ONLY
    for name, default in foreign.items():
        if getattr(args, name) != default:
            raise UsageError(f"{args.flags[name]} does not apply to {args.target}. Leave it out")
    _check_early(args)
    return _saved_model(args) if args.target == "saved_model" else _tflite(args)


def _check_early(args):
    """Finds sizes and folders that do not fit before TensorFlow and the model take their seconds to load."""
    from tfsd.arguments.checks import side_of
    from tfsd.converters.saved_model.versions import free_version, served_name
    from tfsd.storage.model_folders import load_spec, resolve

    spec = load_spec(resolve(args.model))
    for side in itertools.chain.from_iterable(args.size or ()):
        side_of(args.flags["size"], side, side, spec.vae.factor)
    if args.target == "tflite":
        require_target(args.out, "device", overwrite=args.overwrite)
    else:
        folder = Path(args.out) / served_name(spec.name)
        require_target(str(folder / str(free_version(folder, args.version))), "saved_model", overwrite=False)


def _tflite(args) -> int:
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        say(f'exporting needs {" and ".join(missing)}: pip install "tfsd[device]"')
        return 1
    if args.size is not None and len(args.size) > 1:
        raise UsageError("a bundle has one size. Give --size once")
    with stages(args.quiet, keep=True) as shown:
        quiet_tensorflow(shown)
        folder = _bundle(args)
    print_path(folder)
    return 0


def _bundle(args):
    from tfsd.converters.device.export import export_tflite
    from tfsd.converters.device.recipes import plan_sizes
    from tfsd.converters.device.report import Check
    from tfsd.storage.model_folders import load_spec, resolve

    if not args.quiet:
        sizes = plan_sizes(load_spec(resolve(args.model)))[args.quantize]
        rows = [(name, *(f"{size / 1e6:,.1f} MB" for size in one)) for name, one in sizes.items()]
        with aside():
            print_table(rows, ("part", "file, about", "memory on the phone", "memory to convert"))
    return export_tflite(
        args.model,
        args.out,
        quantize=args.quantize,
        size=None if args.size is None else args.size[0],
        max_steps=50 if args.max_steps is None else args.max_steps,
        check=Check(**{own: getattr(args, name) for name, own in _REPORT.items() if getattr(args, name) is not None}),
        overwrite=args.overwrite,
        progress=not args.quiet,
    )


def _saved_model(args) -> int:
    if importlib.util.find_spec("tensorflow_serving") is None:  # found out now, not after minutes
        say('exporting needs tensorflow_serving: pip install "tfsd[serving]"')
        return 1
    with stages(args.quiet, keep=True) as shown:
        quiet_tensorflow(shown)
        from tfsd.converters.saved_model.export import export_saved_model

        folder = export_saved_model(
            args.model,
            args.out,
            version=args.version,
            sizes=args.size,
            batch_sizes=args.batch_sizes,
            max_steps=100 if args.max_steps is None else args.max_steps,
            batching=args.batching,
            dtype=args.dtype,
            xla=not args.no_xla,
            progress=not args.quiet,
        )
    print_path(folder)
    return 0


def verify(args) -> int:
    """Runs the command `verify`."""
    kind = _kind(Path(args.folder))
    with stages(args.quiet) as shown:
        quiet_tensorflow(shown)
        shown("checking files and drawing the reference image")
        verdict = {"saved_model": _verify_saved_model, "bundle": _verify_bundle}[kind](args.folder)
    print(f"{args.folder} is undamaged and draws its reference image{verdict}.")
    return 0


def _kind(folder: Path) -> str:
    """Returns which kind of export a folder is. Raises: `CheckpointError` for other folders."""
    from tfsd.storage.files import read_json

    if not folder.exists():
        raise CheckpointError(f"{folder} does not exist. `tfsd export` writes what can be verified.")
    if (folder / "saved_model.pb").is_file():
        return "saved_model"
    if (folder / "manifest.json").is_file() and read_json(folder / "manifest.json").get("kind") == "device":
        return "bundle"
    below = sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/saved_model.pb"))
    hint = f" Its versions are in it: tfsd verify {below[-1]}." if below else ""
    raise CheckpointError(
        f"{folder} is not an export: it is neither a version by `tfsd export saved_model` nor a bundle by "
        f"`tfsd export tflite`.{hint}"
    )


def _verify_bundle(folder: str) -> str:
    from tfsd.converters.device.verify_bundle import verify_bundle

    verdict = verify_bundle(folder)
    return ", byte for byte" if verdict.equal else f", but for roundings: {verdict.psnr:.1f} dB, as on another processor"


def _verify_saved_model(folder: str) -> str:
    from tfsd.converters.saved_model.verify_export import verify as check

    verdict = check(folder)
    if verdict.same_bytes:
        return ", byte for byte"
    return f"; {100 * verdict.share:.3f} % of the values are one level off, as on another processor or TensorFlow"
