"""`tfsd bench`: time and memory of the full-size denoiser, with random weights; `tfsd bench device`: of what phones run."""

import importlib.util
import json
from pathlib import Path

from tfsd.cli.parsing import Parser, UsageError, add_command, integer
from tfsd.cli.terminal import print_json, print_table, quiet_tensorflow, say, stages
from tfsd.errors import shown
from tfsd.progress import aside
from tfsd.specs.limits import DTYPES

EXAMPLES = """  tfsd bench                               float32 and bfloat16, with XLA and without; takes minutes and 10 GB
  tfsd bench --dtype float32 --jit on --steps 5 --json
  tfsd bench --model tiny --size 128
  tfsd bench device bundle                 a bundle of `tfsd export tflite`, on LiteRT and in TensorFlow
"""
DEVICE_EXAMPLES = """  tfsd bench device bundle                            every signature of a bundle, on two threads
  tfsd bench device bundle --threads 4 --runs 50 --json bundle.json
  tfsd bench device --full-size                       SD 1.x's U-Net at 256 and 512 px, int8 and float16; takes 16 GB and
                                                      half an hour
  tfsd bench device --full-size --sizes 256 --quantize dynamic
  tfsd bench device --full-size --parts text_encoder denoiser decoder
"""
_OWN = {"model": "sd-1.4", "size": 256, "batch": 1, "steps": 5, "dtype": ["float32", "bfloat16"], "jit": "both", "json": False}
_FULL_SIZE_ONLY = ("parts", "sizes", "quantize")


def add_bench(commands):
    """Adds the command to the parser."""
    parser = add_command(
        commands,
        "bench",
        bench,
        help="time the full-size denoiser, or a bundle for phones",
        description="Times steps of Stable Diffusion's full-size denoiser, or another model's, with random weights, and "
        "reports its peak memory. `tfsd bench device` times what phones run instead; see its own --help.",
        examples=EXAMPLES,
    )
    add = parser.add_argument
    add("--model", default=_OWN["model"], help="a preset, or a name or folder of another model (default: sd-1.4)")
    add(
        "--size",
        type=integer(64, 2048),
        default=_OWN["size"],
        help="height and width in pixels, a multiple of 8 (default: 256)",
    )
    add("--batch", type=integer(1, 64), default=_OWN["batch"], help="images at once (default: 1)")
    add("--steps", type=integer(1, 1000), default=_OWN["steps"], help="steps to time after the first (default: 5)")
    add("--dtype", nargs="+", choices=DTYPES, default=_OWN["dtype"], help="one or more")
    add(
        "--jit",
        choices=("both", "on", "off"),
        default=_OWN["jit"],
        help="with XLA, without, or one after the other (default: both)",
    )
    add("--json", action="store_true", help="as JSON")
    _add_device(parser.add_subparsers(title="another benchmark", metavar="device", dest="what", parser_class=Parser))
    return parser


def _add_device(commands):
    parser = add_command(
        commands,
        "device",
        bench_device,
        help="time a bundle for phones on LiteRT, against TensorFlow",
        description="Runs every signature of a bundle on LiteRT's CPU runtime, each in a separate process, and the same "
        "graph in TensorFlow in float32 on as many threads. Reports the time to open and prepare the file, the first run, the "
        "median and the 90th percentile of the others, the most memory above an empty process, and LiteRT's median as a "
        "multiple of TensorFlow's: below 1 is faster. With --full-size, converts and quantizes a full-size model with "
        "random weights first.",
        examples=DEVICE_EXAMPLES,
    )
    add = parser.add_argument
    add("folder", nargs="?", metavar="DIR", help="a bundle that `tfsd export tflite` wrote")
    add("--full-size", action="store_true", help="no bundle: a full-size model, converted here; nothing is downloaded or kept")
    add("--threads", type=integer(1, 256), default=2, help="of the CPU, for both runtimes (default: 2)")
    add("--runs", type=integer(1, 10_000), help="to time after the first (default: 10, with --full-size 3)")
    add("--model", dest="device_model", metavar="MODEL", help="what TensorFlow runs (default: the model of which the bundle was "
        "made, if it is here; with --full-size sd-1.4)")  # fmt: skip
    add("--sizes", type=integer(64, 2048), nargs="+", metavar="PX", help="with --full-size: sides of the images "
        "(default: 256 512)")  # fmt: skip
    add("--quantize", nargs="+", metavar="HOW", help="with --full-size: recipes of `tfsd export tflite` (default: dynamic "
        "int8-weights float16)")  # fmt: skip
    add("--parts", nargs="+", choices=("text_encoder", "denoiser", "decoder"), help="with --full-size: which "
        "parts (default: denoiser)")  # fmt: skip
    add("--json", dest="json_file", metavar="FILE", help="also write all numbers, in bytes and seconds, to this file")
    return parser


def bench(args) -> int:
    """Runs the command; TensorFlow is loaded in a separate process for each setting."""
    from tfsd.benchmark import as_line, benchmark_denoiser

    jit = {"both": (True, False), "on": (True,), "off": (False,)}[args.jit]

    def report(record: dict):
        with aside():
            print(as_line(record), flush=True)

    with stages(args.json) as shown:
        shown("timing, each setting in a separate process")
        records = benchmark_denoiser(
            model=args.model,
            size=args.size,
            batch=args.batch,
            steps=args.steps,
            settings=[(dtype, on) for dtype in args.dtype for on in jit],
            report=None if args.json else report,
        )
    if args.json:
        print_json(records)
    return 0


def bench_device(args) -> int:
    """Runs the command `bench device`."""
    _check_device(args)
    quiet_tensorflow()
    from tfsd.converters.device.bench import bench_bundle, bench_full_size
    from tfsd.converters.device.tables import bundle_table, conversion_table, full_size_table

    given = {"threads": args.threads, "report": say}
    given |= {} if args.runs is None else {"runs": args.runs}
    given |= {} if args.device_model is None else {"model": args.device_model}
    if args.full_size:
        given |= {name: getattr(args, name) for name in _FULL_SIZE_ONLY if getattr(args, name) is not None}
        found = bench_full_size(**given)
        tables = [conversion_table(found), full_size_table(found)]
    else:
        found = bench_bundle(args.folder, **given)
        tables = [bundle_table(found)]
    for rows, header in tables:
        print_table(rows, header)
    failed = [one["error"] for one in found.get("conversions", []) + found["signatures"] if "error" in one]
    for line in [*failed, *filter(None, [found.get("note")])]:
        say(line)
    if args.json_file is not None:
        Path(args.json_file).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(bool(failed))


def _check_device(args):
    """Raises: `UsageError` for options that do not go together; `OSError` for what is missing; before minutes are spent."""
    foreign = [name for name, default in _OWN.items() if getattr(args, name) != default]
    if foreign:
        raise UsageError(f"--{foreign[0]} must stand behind `device`: tfsd bench device --{foreign[0]} ...")
    if args.full_size and args.folder is not None:
        raise UsageError("give a bundle DIR or --full-size, not both")
    if not args.full_size and args.folder is None:
        raise UsageError("give a bundle DIR, or --full-size. `tfsd export tflite` makes bundles")
    for name in _FULL_SIZE_ONLY:
        if not args.full_size and getattr(args, name) is not None:
            raise UsageError(f"--{name} requires --full-size; a bundle has its own. Leave it out")
    if args.json_file is not None and (Path(args.json_file).is_dir() or not Path(args.json_file).parent.is_dir()):
        raise UsageError(f"--json must be a file in a folder that is there; got {shown(args.json_file, 300)}")
    needed = ("ai_edge_litert", "ai_edge_quantizer") if args.full_size else ("ai_edge_litert",)
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise OSError(f'this benchmark needs {" and ".join(missing)}: pip install "tfsd[device]"')
