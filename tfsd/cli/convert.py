"""`tfsd convert`: another package's weights become a model folder."""

import os

from tfsd.cli.parsing import add_command
from tfsd.cli.targets import require_target
from tfsd.cli.terminal import print_path, quiet_tensorflow, stages
from tfsd.specs.limits import DTYPES, NUMERICS

EXAMPLES = """  tfsd convert ~/stable-diffusion-v1-5 sd15              a diffusers folder of safetensors
  tfsd convert ~/.keras/datasets sd14 --dtype float16     KerasCV's four .h5 files
  tfsd convert ~/a-distilled-model fast --sampler euler   if tfsd does not have the source's sampler
  tfsd "a lighthouse in a storm" --model ./sd15
"""


def add_convert(commands):
    """Adds the command to the parser."""
    parser = add_command(
        commands,
        "convert",
        convert,
        help="make a model folder from weights of diffusers or KerasCV",
        description="Writes the model folder DST from the weights in SRC, a diffusers folder or a folder of KerasCV's .h5 files.",
        examples=EXAMPLES,
    )
    add = parser.add_argument
    add("src", metavar="SRC", help="folder of the weights")
    add("dst", metavar="DST", help="model folder to write")
    add("--kind", choices=("diffusers", "kerascv"), default=None, help="what SRC is (default: looks for itself)")
    add("--variant", default=None, help="of diffusers' files, such as fp16; parts without it are read from plain files")
    add("--sampler", default=None, help="the model's default, a name from `tfsd generate --help` (default: the source's)")
    add("--numerics", choices=NUMERICS, default=None, help="whose numbers to follow: CompVis' and "
        "diffusers', or KerasCV 0.9's; its earlier releases had other timesteps (default: the source's)")  # fmt: skip
    add("--dtype", choices=(*DTYPES, "keep"), default="float32", help="to store (default: float32)")
    add("--name", default=None, help="of the model (default: the name of DST)")
    add("--overwrite", action="store_true", help="replace DST if it is a model folder and holds nothing else")
    add("--quiet", action="store_true", help="no progress")
    return parser


def convert(args) -> int:
    """Runs the command."""
    if os.path.exists(args.src):  # else that is the mistake to tell of
        require_target(args.dst, "model", overwrite=args.overwrite)
    with stages(args.quiet) as shown:
        shown("looking at the source")
        from tfsd.converters import convert as run

        if os.path.exists(args.src):  # else the error need not wait for TensorFlow
            quiet_tensorflow(shown, drawing=False)
            shown("reading the source")
        folder = run(
            args.src,
            args.dst,
            kind=args.kind,
            numerics=args.numerics,
            sampler=args.sampler,
            dtype=None if args.dtype == "keep" else args.dtype,
            name=args.name,
            overwrite=args.overwrite,
            progress=not args.quiet,
            **({"variant": args.variant} if args.variant is not None else {}),
        )
    print_path(folder)
    return 0
