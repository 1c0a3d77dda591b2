"""`tfsd export` and `tfsd verify`: a model in the form that TensorFlow Serving loads, and the check that it still draws."""

import argparse
import importlib.util
import re
import sys

from tfsd.cli.parsing import add_command, whole
from tfsd.cli.terminal import quiet_tensorflow

EXPORT_EXAMPLES = """  tfsd export saved_model --out models                       writes models/tiny/1
  tfsd export saved_model --out models --no-xla              the next version, for servers without their XLA flag
  tfsd export saved_model --model sd-1.4 --out models --size 512x512 --size 512x768 --dtype bfloat16
  tfsd export saved_model --model sd-1.4 --out models --batching fused --batch-sizes 1 2 4 8       for a GPU
"""
VERIFY_EXAMPLES = """  tfsd verify models/tiny/1
"""


def add_export(commands):
    """Adds the command `export` to the parser."""
    parser = add_command(
        commands,
        "export",
        export,
        help="write a model for TensorFlow Serving",
        description="Writes DIR/NAME/VERSION, a SavedModel that takes prompts and answers PNG files. What it draws is compared "
        "with what Python draws before it is there. `tfsd serve DIR` serves it, and so does TensorFlow Serving.",
        examples=EXPORT_EXAMPLES,
    )
    add = parser.add_argument
    add("target", choices=("saved_model",), help="what to write")
    add("--model", default="tiny", help="a name from `tfsd models`, or a model folder (default: tiny)")
    add("--out", required=True, metavar="DIR", help="the folder of models")
    add("--version", type=whole(1), default=None, help="number of the version (default: the next one)")
    add("--size", type=_size, action="append", metavar="HxW", help="height x width that may be asked for; repeat it for "
        "several, of which the first one is the default (default: the model's)")  # fmt: skip
    add("--batch-sizes", type=whole(1, 64), nargs="+", default=[1, 2, 4, 8], metavar="N", help="pictures of one request: filled "
        "up to the next of these, at most the last (default: 1 2 4 8)")  # fmt: skip
    add("--max-steps", type=whole(1, 1000), default=100, help="that may be asked for (default: 100)")
    add("--batching", choices=("exact", "fused"), default="exact", help="exact: every picture is computed alone, several side "
        "by side, and has the same bytes in any batch; fused: a batch at once, for GPUs (default: exact)")  # fmt: skip
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of weights and products, but for the "
        "VAE (default: float32)")  # fmt: skip
    add("--no-xla", action="store_true", help="do not compile; TensorFlow Serving compiles only when started with "
        "--xla_cpu_compilation_enabled (or --xla_gpu_compilation_enabled), and refuses compiled exports otherwise")  # fmt: skip
    add("--quiet", action="store_true", help="no progress bar")
    return parser


def add_verify(commands):
    """Adds the command `verify` to the parser."""
    parser = add_command(
        commands,
        "verify",
        verify,
        help="check an export: its files, and that it draws what it drew",
        description="Checks the files of DIR/NAME/VERSION and draws its reference picture again, on this machine and with this "
        "TensorFlow. Exit status 1 if a file is damaged or the picture is another one.",
        examples=VERIFY_EXAMPLES,
    )
    parser.add_argument("folder", help="a version that `tfsd export saved_model` wrote")
    return parser


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", text)
    if not found:
        raise argparse.ArgumentTypeError(f"must be height x width in pixels, as 512x768; got {text!r}")
    return int(found[1]), int(found[2])


def export(args) -> int:
    """Runs the command `export`."""
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
        max_steps=args.max_steps,
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
    from converters.verify import verify as check

    verdict = check(args.folder)
    if verdict.same_bytes:
        print(f"{args.folder} is undamaged and draws its reference picture, byte for byte.")
    else:
        print(f"{args.folder} is undamaged and draws its reference picture; {100 * verdict.share:.3f} % of the values are one "
              "level off, as on another processor or TensorFlow.")  # fmt: skip
    return 0
