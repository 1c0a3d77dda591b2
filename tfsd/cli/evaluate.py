"""`tfsd eval`: how well a model's images follow their prompts."""

from tfsd.cli.parsing import add_command, integer, real
from tfsd.cli.terminal import print_json, quiet_tensorflow, stages

EXAMPLES = """  tfsd eval
  tfsd eval --n 50 --seed 1 --json
  tfsd eval --model runs/tiny/model
"""


def add_eval(commands):
    """Adds the command to the parser."""
    parser = add_command(
        commands,
        "eval",
        evaluate,
        help="measure how well images follow their prompts",
        description="Makes images from prompts that were not used in training and lets a checker, made for drawn scenes, "
        "tell whether the objects asked for are there; also reports the checker's own accuracy.",
        examples=EXAMPLES,
    )
    add = parser.add_argument
    add("--model", default="tiny", help="a name from `tfsd models`, or a model folder (default: tiny)")
    add("--n", type=integer(1, 100_000), default=200, help="images per kind of prompt (default: 200)")
    add("--seed", type=integer(0, 2**31 - 3), default=0, help="seed of prompts and images (default: 0)")
    add("--steps", type=integer(1), default=None, help="steps of the sampler (default: the model's)")
    add("--scale", type=real(0, 100), default=None, help="guidance (default: the model's)")
    add("--sampler", default=None, help="a name from `tfsd generate --help` (default: the model's)")
    add("--sheet", metavar="FILE", default=None, help="PNG file to show the first images in")
    add("--json", action="store_true", help="as JSON")
    add("--quiet", action="store_true", help="no progress")
    return parser


def evaluate(args) -> int:
    """Runs the command."""
    from tfsd.images.files import ImageFileError, check_targets, image_path
    from tfsd.samplers.plans import find_sampler
    from tfsd.storage.model_folders import load_spec, resolve

    load_spec(resolve(args.model))  # a wrong name need not wait for TensorFlow
    if args.sampler is not None:
        find_sampler(args.sampler)
    if args.sheet is not None:
        check_targets([image_path(args.sheet, "--sheet", (".png",))])
    with stages(args.quiet) as shown:
        quiet_tensorflow(shown)
    from tfsd.training import evaluate as measure

    report = measure.evaluate(
        args.model,
        n=args.n,
        seed=args.seed,
        num_steps=args.steps,
        guidance_scale=args.scale,
        sampler=args.sampler,
        sheet=args.sheet,
        progress=not args.quiet,
    )
    failure = report.pop("sheet_error", None)
    print_json(report) if args.json else print(measure.as_text(report))
    if failure is not None:
        raise ImageFileError(failure)
    return 0
