"""`tfsd generate`: makes image files from prompts."""

import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tfsd.arguments.table import DEVICE, GRAPH, IMAGE_TO_IMAGE, PYTHON, TEXT_TO_IMAGE
from tfsd.batch import Batch, Row, batches
from tfsd.cli import remote
from tfsd.cli.output import Output
from tfsd.cli.parsing import UsageError, add_command, integer, prompt_text, size
from tfsd.cli.prompts import read_prompts
from tfsd.cli.request_options import fixed_options, given_arguments, request_options
from tfsd.cli.terminal import quiet_tensorflow, stages
from tfsd.progress import Stages
from tfsd.specs.limits import DTYPES, NUMERICS

MAX_IMAGES = 10_000
EXAMPLES = """  tfsd "a red star above a blue house at night"
  tfsd "a cat in the snow" --seed 7 --out cat.png         the same seed makes the same image
  tfsd "a cat in the snow" --seed 7 -n 4 --grid           images 0 to 3 of seed 7 in one file
  tfsd "a cat in the snow" --seed 7 --index 2             image 2 alone
  tfsd --prompts lines.txt --out "{n}-{seed}.webp"        one image per line of a file
  echo "a red star" | tfsd - --out - > star.png           prompts from standard input, the image to standard output
  tfsd "a boat" --steps 50 --scale 5 --sampler dpmpp_2m --negative "a red boat"
  tfsd "a boat" --image photo.jpg --strength 0.6          begins with an image
  tfsd "a boat" --server localhost:8500                   made by a server
  tfsd -- help                                            after -- also a word that names a command

In a file of prompts, and in standard input, each line is a prompt; empty lines are skipped, and lines that begin with #,
which are comments.
"""
OPTIONS = {  # of the command, by their usual names; `tfsd.cli.parsing.ALIASES` has more for some
    "--prompts": {"metavar": "FILE", "help": "read prompts from FILE, one per line, # begins a comment; - is standard input"},
    "--allow-empty": {"action": "store_true", "help": "take an empty prompt"},
    "--n": {"type": integer(1, MAX_IMAGES), "default": 1, "help": "images per prompt (default: 1)"},
    **request_options(),
    "--size": {"type": size, "metavar": "HxW", "help": "height x width in pixels, as 512x768, or one number for both"},
    "--model": {"default": "tiny", "help": "a name from `tfsd models`, or a model folder (default: tiny)"},
    "--dtype": {"choices": DTYPES, "default": "float32", "help": "of weights and products, but for the VAE (default: float32)"},
    "--numerics": {"choices": NUMERICS, "help": "whose numbers to follow (default: the model's)"},
    "--no-jit": {"action": "store_true", "help": "without XLA: starts sooner, runs slower"},
    "--batch": {"type": integer(1, 64), "default": 4, "help": "images computed at once, at most (default: 4)"},
    "--grid": {"action": "store_true", "help": "one file with all images"},
    "--columns": {"type": integer(1), "help": "of the grid (default: about as many as rows)"},
    "--out": {"metavar": "FILE", "help": "file that ends in .png, .jpg or .webp, replaced if it exists; several images are "
              "numbered, or named by {n}, {seed}, {index}, {prompt} in FILE; of a folder or by default, free names are made of "
              "the prompts; - is standard output"},
    "--quiet": {"action": "store_true", "help": "no progress"},
}  # fmt: skip


def add_generate(commands):
    """Adds the command to the parser."""
    parser = add_command(
        commands,
        "generate",
        generate,
        help="make images from prompts (the default command)",
        description="Makes an image from each prompt, writes it to a file that carries its recipe, and prints the file's name.",
        examples=EXAMPLES,
    )
    shown = "what to show, in quotes; - reads prompts from standard input"
    parser.add_argument("prompt", nargs="*", type=prompt_text, help=shown)
    for name, kind in OPTIONS.items():
        parser.add_argument(name, **kind)
    remote.add_server_options(parser)
    remote.add_bundle_options(parser)
    return parser


def generate(args) -> int:
    """Runs the command."""
    from tfsd.cli import COMMANDS

    prompts = read_prompts(args, tuple(COMMANDS))
    _check_options(args)
    if len(prompts) * args.n > MAX_IMAGES:
        raise UsageError(f"at most {MAX_IMAGES} images at once; got {len(prompts)} prompts times {args.n}")
    rows = _rows(args, prompts)
    output = Output(args, rows)
    with stages(args.quiet) as shown:
        model = _loaded(args, prompts, shown)
        # Exports have compiled their graphs, so that batches of several sizes cost nothing there.
        call = getattr(model, _task(args))
        made = _run(call, args, batches(rows, args.batch, fill=_target(args) == PYTHON), shown)
        if args.grid:
            output.save(_joined(made))
            return 0
        for number, images in made:
            output.save(images, number)
    return 0


def _rows(args, prompts: list[str]) -> list[Row]:
    """Returns the arguments of each image; `args.n` images of a prompt come one after the other."""
    given = {name: value for name, value in given_arguments(args, _target(args), _task(args)).items() if value is not None}
    seed = secrets.randbelow(2**31 - 2) if args.seed is None else args.seed
    return [{"prompt": prompt} | given | {"seed": seed, "index": args.index + i} for prompt in prompts for i in range(args.n)]


def _check_options(args):
    """Raises: `UsageError` for options that do not go together; puts the sides of --size where --height and --width are."""
    if args.columns is not None and not args.grid:
        raise UsageError(f"{args.flags['columns']} requires --grid. Add --grid")
    if args.size is not None:
        if args.height is not None or args.width is not None:
            raise UsageError(f"give {args.flags['size']} or --height and --width, not both")
        args.height, args.width = args.size
        args.flags |= {"height": "height of " + args.flags["size"], "width": "width of " + args.flags["size"]}
    remote.check_options(args)
    for name, default in fixed_options(PYTHON, _task(args)).items():
        if getattr(args, name) != default:
            raise UsageError(f"{args.flags[name]} requires {args.flags['image']}. Add {args.flags['image']} FILE")


def _loaded(args, prompts: list[str], shown: Stages):
    """Returns what makes the images: a model, loaded once the arguments are known to be right, or a server's client."""
    if args.server is not None:
        return remote.connect(args)
    if args.device_bundle is not None:
        quiet_tensorflow(shown)
        shown(f"loading {args.device_bundle}")
        from tfsd.device import DeviceBundle

        bundle = DeviceBundle(args.device_bundle, threads=args.threads or 2)
        _warn_of_texts(bundle.tokenizer, args, prompts)
        return bundle
    _check_early(args, prompts)
    quiet_tensorflow(shown)
    shown(f"loading {args.model}")
    from tfsd.api import load

    return load(args.model, dtype=args.dtype, jit_compile=not args.no_jit, numerics=args.numerics)


def _target(args) -> str:
    """Returns what makes the images."""
    return GRAPH if args.server is not None else DEVICE if args.device_bundle is not None else PYTHON


def _task(args) -> str:
    """Returns what is done, by the name of the function that does it."""
    return TEXT_TO_IMAGE if args.image is None else IMAGE_TO_IMAGE


def _check_early(args, prompts: list[str]):
    """Finds mistakes in the arguments, and what is not read of prompts, before TensorFlow takes its seconds to start."""
    from tfsd.arguments.checks import side_of
    from tfsd.samplers.plans import build_plan
    from tfsd.storage.model_folders import load_spec, resolve
    from tfsd.text import Tokenizer

    spec = load_spec(resolve(args.model))
    for name, side in ((args.flags["height"], args.height), (args.flags["width"], args.width)):
        side_of(name, side, spec.vae.factor, spec.vae.factor)
    sampler = spec.default_sampler if args.sampler is None else args.sampler
    build_plan(spec.schedule, sampler, spec.default_steps if args.steps is None else args.steps, eta=args.eta)
    if args.image is not None:
        from tfsd.images.inputs import read_images

        height, width = (own if side is None else side for side, own in zip((args.height, args.width), spec.default_size))
        read_images(args.flags["image"], args.image, 1, (height, width), args.fit)
    spec = spec if args.numerics is None else spec.with_numerics(args.numerics)
    _warn_of_texts(Tokenizer(spec.text[0]), args, prompts)


def _warn_of_texts(tokenizer, args, prompts: list[str]):
    """Warns, once for all batches, of what a model does not read of the texts and of words that it never learned.

    Raises: `ValueError` for a text that cannot be read.
    """
    from tfsd.text import PromptTruncationWarning, UnknownWordsWarning, warn_of_unknown_words

    named = {"prompt": prompts, "negative_prompt": [args.negative or ""]}
    for name, texts in named.items():
        tokenizer(texts if len(texts) > 1 else texts[0], name=name)
    for name, texts in named.items():
        warn_of_unknown_words(tokenizer, texts, name, set())
    for category in (PromptTruncationWarning, UnknownWordsWarning):
        warnings.simplefilter("ignore", category)


def _run(call: Callable, args, planned: list[Batch], shown: Stages) -> Iterator[tuple[int, Any]]:
    """Yields each image with the number of its row, as `Images` of one."""
    first, count = 1, sum(len(batch.rows) for batch in planned)
    for batch in planned:
        last = first + len(batch.rows) - 1
        shown.label = f"image {first} of {count}" if first == last else f"images {first} to {last} of {count}"
        first = last + 1
        images = call(
            **batch.arguments(),
            progress=not args.quiet,
            callback=lambda done, steps: None,  # between chunks of steps Ctrl-C is heard
        )
        for i, number in enumerate(batch.numbers):
            yield number, images[i : i + 1]


def _joined(made: Iterable[tuple[int, Any]]):
    """Returns all images, in the order of their rows."""
    import numpy as np

    from tfsd.images import Images

    parts = [images for _, images in sorted(made, key=lambda pair: pair[0])]
    return Images(np.concatenate(parts), [recipe for images in parts for recipe in images.recipes])
