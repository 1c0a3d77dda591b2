"""`tfsd bench`: time and memory of the full-size U-Net, on random weights."""

from tfsd.cli.parsing import add_command, whole
from tfsd.cli.terminal import print_json

EXAMPLES = """  tfsd bench                               float32 and bfloat16, with XLA and without; takes minutes and 10 GB
  tfsd bench --dtype float32 --jit on --steps 5 --json
  tfsd bench --model tiny --size 128
"""


def add_bench(commands):
    """Adds the command to the parser."""
    parser = add_command(
        commands,
        "bench",
        bench,
        help="time the full-size U-Net on this machine",
        description="Times steps of Stable Diffusion's full-size U-Net, or another model's, with random weights, and tells "
        "its peak memory.",
        examples=EXAMPLES,
    )
    add = parser.add_argument
    add("--model", default="sd-1.4", help="a preset, or a name or folder of another model (default: sd-1.4)")
    add("--size", type=whole(64, 2048), default=256, help="height and width in pixels, a multiple of 8 (default: 256)")
    add("--batch", type=whole(1, 64), default=1, help="pictures at once (default: 1)")
    add("--steps", type=whole(1, 1000), default=5, help="steps to time after the first (default: 5)")
    add("--dtype", nargs="+", choices=("float32", "bfloat16", "float16"), default=["float32", "bfloat16"], help="one or more")
    add("--jit", choices=("both", "on", "off"), default="both", help="with XLA, without, or one after the other (default: both)")
    add("--json", action="store_true", help="as JSON")
    return parser


def bench(args) -> int:
    """Runs the command; TensorFlow is loaded in processes of their own, one for each setting."""
    from tfsd.benchmark import as_line, benchmark_unet

    jit = {"both": (True, False), "on": (True,), "off": (False,)}[args.jit]
    records = benchmark_unet(
        model=args.model,
        size=args.size,
        batch=args.batch,
        steps=args.steps,
        settings=[(dtype, on) for dtype in args.dtype for on in jit],
        report=None if args.json else lambda record: print(as_line(record), flush=True),
    )
    if args.json:
        print_json(records)
    return 0
