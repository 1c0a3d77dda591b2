"""`tfsd export` and `tfsd verify`: a model in the form that TensorFlow Serving or a phone loads, and the check of it."""

import argparse
import importlib.util
import re
import sys

from tfsd.cli.parsing import UsageError, add_command, whole
from tfsd.cli.terminal import print_table, quiet_tensorflow
from tfsd.errors import shown

EXPORT_EXAMPLES = """  tfsd export saved_model --out models                       writes models/tiny/1
  tfsd export saved_model --out models --no-xla              the next version, for servers without their XLA flag
  tfsd export saved_model --model sd-1.4 --out models --size 512x512 --size 512x768 --dtype bfloat16
  tfsd export saved_model --model sd-1.4 --out models --batching fused --batch-sizes 1 2 4 8       for a GPU
  tfsd export tflite --quantize int8-weights --out bundle    four TFLite files for a phone, with a report on their quality
  tfsd generate "a red star" --device-bundle bundle          draws with them here, as a phone does
"""
VERIFY_EXAMPLES = """  tfsd verify models/tiny/1
  tfsd verify bundle
"""
_SAVED_MODEL_ONLY = {"version": None, "batch_sizes": [1, 2, 4, 8], "batching": "exact", "dtype": "float32", "no_xla": False}
_REPORT = {"report_pictures": "pictures", "report_steps": "steps", "report_prompts": "adherence"}
_TFLITE_ONLY = {"quantize": "none", "overwrite": False, **dict.fromkeys(_REPORT)}


def add_export(commands):
    """Adds the command `export` to the parser."""
    parser = add_command(
        commands,
        "export",
        export,
        help="write a model for TensorFlow Serving or a phone",
        description="saved_model: writes DIR/NAME/VERSION, which takes prompts and answers PNG files; `tfsd serve DIR` serves "
        "it, and so does TensorFlow Serving. tflite: writes the bundle DIR, the same maths as TFLite files for phones. What "
        "either draws is compared with what Python draws before it is there.",
        examples=EXPORT_EXAMPLES,
    )
    add = parser.add_argument
    add("target", choices=("saved_model", "tflite"), help="what to write")
    add("--model", default="tiny", help="a name from `tfsd models`, or a model folder (default: tiny)")
    add("--out", required=True, metavar="DIR", help="the folder of models, or of the bundle")
    add("--version", type=whole(1), default=None, help="number of the version (default: the next one)")
    add("--size", type=_size, action="append", metavar="HxW", help="height x width that may be asked for; repeat it for "
        "several, of which the first one is the default (default: the model's)")  # fmt: skip
    add("--batch-sizes", type=whole(1, 64), nargs="+", default=[1, 2, 4, 8], metavar="N", help="pictures of one request: filled "
        "up to the next of these, at most the last (default: 1 2 4 8)")  # fmt: skip
    add("--max-steps", type=whole(1, 1000), default=None, help="that may be asked for (default: 100, of tflite 50)")
    add("--batching", choices=("exact", "fused"), default="exact", help="exact: every picture is computed alone, several side "
        "by side, and has the same bytes in any batch; fused: a batch at once, for GPUs (default: exact)")  # fmt: skip
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of weights and products, but for the "
        "VAE (default: float32)")  # fmt: skip
    add("--no-xla", action="store_true", help="do not compile; TensorFlow Serving compiles only when started with "
        "--xla_cpu_compilation_enabled (or --xla_gpu_compilation_enabled), and refuses compiled exports otherwise")  # fmt: skip
    from converters.device.recipes import RECIPES

    kinds = "; ".join(f"{name}: {recipe.summary}" for name, recipe in RECIPES.items())
    add("--quantize", choices=tuple(RECIPES), default="none", help=f"of tflite. {kinds} (default: none)")
    add("--report-pictures", type=whole(1, 64), default=None, metavar="N", help="of tflite: pictures that the report on quality "
        "compares (default: 4)")  # fmt: skip
    add("--report-steps", type=whole(1, 1000), default=None, metavar="N", help="of each of them (default: 10)")
    add("--report-prompts", type=whole(0, 10_000), default=None, metavar="N", help="of one object and as many of two, that the "
        "report on tiny counts as followed or not (default: 48)")  # fmt: skip
    add("--overwrite", action="store_true", help="of tflite: replace a bundle")
    add("--quiet", action="store_true", help="no progress bar and no plan")
    return parser


def add_verify(commands):
    """Adds the command `verify` to the parser."""
    parser = add_command(
        commands,
        "verify",
        verify,
        help="check an export: its files, and that it draws what it drew",
        description="Checks the files of an export and draws its reference picture again, on this machine and with this "
        "TensorFlow or LiteRT. Exit status 1 if a file is damaged or the picture is another one.",
        examples=VERIFY_EXAMPLES,
    )
    parser.add_argument("folder", help="a version or a bundle that `tfsd export` wrote")
    return parser


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be height x width in pixels, as 512x768; got {shown(text)}")
    return int(found[1]), int(found[2])


def export(args) -> int:
    """Runs the command `export`."""
    foreign = _TFLITE_ONLY if args.target == "saved_model" else _SAVED_MODEL_ONLY
    for name, default in foreign.items():
        if getattr(args, name) != default:
            raise UsageError(f"--{name.replace('_', '-')} is not of {args.target}. Leave it out")
    return _saved_model(args) if args.target == "saved_model" else _tflite(args)


def _tflite(args) -> int:
    if missing := [name for name in ("ai_edge_litert", "ai_edge_quantizer") if importlib.util.find_spec(name) is None]:
        print(f'tfsd: exporting needs {" and ".join(missing)}: pip install "tfsd[device]"', file=sys.stderr)
        return 1
    if args.size is not None and len(args.size) > 1:
        raise UsageError("a bundle has one size. Give --size once")
    quiet_tensorflow()
    from converters.device.export import export_tflite
    from converters.device.recipes import plan_sizes
    from converters.device.report import Check
    from tfsd.weights import load_spec, resolve

    if not args.quiet:
        sizes = plan_sizes(load_spec(resolve(args.model)))[args.quantize]
        rows = [(name, *(f"{size / 1e6:,.1f} MB" for size in one)) for name, one in sizes.items()]
        print_table(rows, ("part", "file, about", "memory on the phone", "memory to convert"))
    folder = export_tflite(
        args.model,
        args.out,
        quantize=args.quantize,
        size=None if args.size is None else args.size[0],
        max_steps=50 if args.max_steps is None else args.max_steps,
        check=Check(**{own: getattr(args, name) for name, own in _REPORT.items() if getattr(args, name) is not None}),
        overwrite=args.overwrite,
        progress=not args.quiet,
    )
    print(folder)
    return 0


def _saved_model(args) -> int:
    if importlib.util.find_spec("tensorflow_serving") is None:  # found out now, not after minutes
        print('tfsd: exporting needs tensorflow_serving: pip install "tfsd[serving]"', file=sys.stderr)
        return 1
    quiet_tensorflow()
    from converters.saved_model import export_saved_model

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
    print(folder)
    return 0


def verify(args) -> int:
    """Runs the command `verify`."""
    quiet_tensorflow()
    from tfsd.device import is_bundle

    if is_bundle(args.folder):
        from converters.device.verify import verify_bundle

        verdict = verify_bundle(args.folder)
        how = "byte for byte" if verdict.equal else f"but for roundings: {verdict.psnr:.1f} dB, as on another processor"
        print(f"{args.folder} is undamaged and draws its reference picture, {how}.")
        return 0
    from converters.verify import verify as check

    verdict = check(args.folder)
    if verdict.same_bytes:
        print(f"{args.folder} is undamaged and draws its reference picture, byte for byte.")
    else:
        print(f"{args.folder} is undamaged and draws its reference picture; {100 * verdict.share:.3f} % of the values are one "
              "level off, as on another processor or TensorFlow.")  # fmt: skip
    return 0
