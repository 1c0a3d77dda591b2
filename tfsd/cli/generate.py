"""`tfsd generate`: prompts become PNG files."""

import secrets
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tfsd.arguments import MAX_INDEX, MAX_SCALE
from tfsd.cli import remote
from tfsd.cli.parsing import UsageError, add_command, real, whole
from tfsd.cli.terminal import quiet_tensorflow

MAX_PICTURES = 10_000
_MAX_FILE = 16 * 2**20  # bytes of a file of prompts
EXAMPLES = """  tfsd "a red star above a blue house at night"
  tfsd "a cat in the snow" --seed 7 --out cat.png         the same seed makes the same picture
  tfsd "a cat in the snow" --seed 7 --n 4 --grid          pictures 0 to 3 of seed 7 in one file
  tfsd "a cat in the snow" --seed 7 --index 2             picture 2 alone
  tfsd --prompts lines.txt --out "{n}-{seed}.png"         one picture per line of a file
  tfsd "a boat" --steps 50 --scale 5 --sampler dpmpp_2m --negative "a red boat"
  tfsd "a boat" --server localhost:8500                   made by a server
"""


def add_generate(commands):
    """Adds the command to the parser."""
    parser = add_command(
        commands,
        "generate",
        generate,
        help="make pictures of prompts (the default command)",
        description="Makes a picture of each prompt, writes it as a PNG file that carries its recipe, and prints its name.",
        examples=EXAMPLES,
    )
    add = parser.add_argument
    add("prompt", nargs="*", help="what to show, in quotes")
    add("--prompts", metavar="FILE", help="read prompts from FILE, one per line; - is standard input")
    add("--negative", default=None, metavar="TEXT", help="what not to show")
    add("--n", type=whole(1, MAX_PICTURES), default=1, help="pictures per prompt (default: 1)")
    add(
        "--seed",
        type=whole(-(2**63), 2**63 - 1),
        default=None,
        help="same prompt, seed and index: same picture (default: drawn, see `tfsd show`)",
    )
    add("--index", type=whole(0, MAX_INDEX), default=0, help="number of the first picture of the seed (default: 0)")
    add("--steps", type=whole(1), default=None, help="steps of the sampler (default: the model's)")
    add(
        "--scale",
        type=real(0, MAX_SCALE),
        default=None,
        help="guidance: how closely the prompt is followed (default: the model's)",
    )
    add("--sampler", default=None, help=f"{', '.join(_samplers())} (default: the model's)")
    add("--eta", type=real(0, 1), default=0.0, help="fresh noise per step, for ddim (default: 0)")
    add("--height", type=whole(8, 2048), default=None, help="in pixels, a multiple of 8 (default: the model's)")
    add("--width", type=whole(8, 2048), default=None, help="in pixels, a multiple of 8 (default: the model's)")
    add("--model", default="tiny", help="a name from `tfsd models`, or a model folder (default: tiny)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of weights and products, but for the VAE (default: float32)",
    )
    add("--numerics", choices=("compvis", "kerascv"), default=None, help="whose numbers to follow (default: the model's)")
    add("--no-jit", action="store_true", help="without XLA: starts sooner, runs slower")
    add("--batch", type=whole(1, 64), default=4, help="pictures computed at once, at most (default: 4)")
    add("--grid", action="store_true", help="one file with all pictures")
    add("--columns", type=whole(1), default=None, help="of the grid (default: about as many as rows)")
    add("--out", default=None, metavar="FILE", help="PNG file, replaced if it exists; several pictures are numbered, "
        "or named by {n}, {seed}, {index}, {prompt} in FILE (default: free names made of the prompts)")  # fmt: skip
    add("--quiet", action="store_true", help="no progress bar")
    remote.add_server_options(parser)
    remote.add_bundle_options(parser)
    return parser


def _samplers() -> Sequence[str]:
    from tfsd.samplers.plans import SAMPLERS

    return list(SAMPLERS)


class Batch(NamedTuple):
    """Pictures that are computed at once: one per prompt, the first of them number `index` of the seed.

    `same` tells that all are of one prompt and their indices count up; else all have `index`.
    """

    prompts: list[str]
    index: int
    same: bool
    keep: int  # the rest only fills up the batch


def generate(args) -> int:
    """Runs the command."""
    prompts = _prompts(args)
    if args.columns is not None and not args.grid:
        raise UsageError("--columns is of --grid. Add --grid")
    remote.check_options(args)
    if len(prompts) * args.n > MAX_PICTURES:
        raise UsageError(f"at most {MAX_PICTURES} pictures at once; got {len(prompts)} prompts times {args.n}")
    seed = secrets.randbelow(2**31 - 2) if args.seed is None else args.seed
    pictures = [{"prompt": p, "seed": seed, "index": args.index + i} for p in prompts for i in range(args.n)]
    names = _names(args, pictures)
    from tfsd.images import Images

    model, jobs = _loaded(args, prompts), batches(prompts, args.n, args.index, args.batch)
    if _is_export(args):  # nothing is compiled here for which batches should have one size
        jobs = [job._replace(prompts=job.prompts[: job.keep]) for job in jobs]
    parts = _run(model, args, seed, jobs)
    if args.grid:
        _save(_joined(list(parts)), names[0], args)
        return 0
    left = iter(names)
    for images in parts:
        for i, recipe in enumerate(images.recipes):
            _save(Images(images[i : i + 1], [recipe]), next(left), args)
    return 0


def _loaded(args, prompts: list[str]):
    """Returns what makes the pictures: a model, loaded once the arguments are known to be right, or a server's client."""
    if args.server is not None:
        return remote.connect(args)
    if args.device_bundle is not None:
        quiet_tensorflow()
        from tfsd.device import DeviceBundle

        return DeviceBundle(args.device_bundle, threads=args.threads or 2)
    _check_early(args, prompts)
    quiet_tensorflow()
    from tfsd.api import load
    from tfsd.text import PromptTruncationWarning

    model = load(args.model, dtype=args.dtype, jit_compile=not args.no_jit, numerics=args.numerics)
    warnings.simplefilter("ignore", PromptTruncationWarning)  # `_check_early` told of it
    return model


def _is_export(args) -> bool:
    return args.server is not None or args.device_bundle is not None


def _prompts(args) -> list[str]:
    if args.prompts is not None and args.prompt:
        raise UsageError("give prompts or --prompts FILE, not both")
    if args.prompts is not None:
        prompts = [line.strip() for line in _read(args.prompts).splitlines() if line.strip()]
        if not prompts:
            raise UsageError(f"{args.prompts} holds no prompt")
        return prompts
    if not args.prompt:
        raise UsageError('a prompt is missing, as in: tfsd "a red star"')
    if len(args.prompt) > 1 and not any(" " in prompt for prompt in args.prompt):
        raise UsageError(f'put the prompt in quotes: tfsd "{" ".join(args.prompt)[:200]}"')
    return args.prompt


def _read(name: str) -> str:
    if name == "-":
        data = sys.stdin.buffer.read(_MAX_FILE + 1)
    else:
        try:
            with open(name, "rb") as file:
                data = file.read(_MAX_FILE + 1)
        except (OSError, ValueError) as error:
            raise UsageError(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > _MAX_FILE:
        raise UsageError(f"{name} has more than {_MAX_FILE} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 (byte {error.start})") from error


def _names(args, pictures: list[dict]) -> list[Path]:
    """Returns the names of the files to write, which are known to be writable."""
    from tfsd.images import check_targets, file_names, free_names

    files = pictures[:1] if args.grid else pictures
    if args.out is not None:
        names = file_names(args.out, files)
    else:
        groups = [files[i : i + args.n] for i in range(0, len(files), args.n)]
        free = free_names([group[0]["prompt"] for group in groups])
        names = [name for group, one in zip(groups, free) for name in file_names(one, group)]
    check_targets(names)
    return names


def _check_early(args, prompts: list[str]):
    """Finds mistakes in the arguments before TensorFlow takes its seconds to start, and warns of cut prompts, once each."""
    from tfsd.samplers.plans import build_plan
    from tfsd.text import Tokenizer
    from tfsd.weights import load_spec, resolve

    spec = load_spec(resolve(args.model))
    for name, side in (("--height", args.height), ("--width", args.width)):
        if side is not None and side % spec.vae.factor:
            below = side - side % spec.vae.factor
            nearest = f"{below} or {below + spec.vae.factor}"
            raise UsageError(f"{name} must be a multiple of {spec.vae.factor}; got {side}. Use {nearest}.")
    sampler = spec.default_sampler if args.sampler is None else args.sampler
    build_plan(spec.schedule, sampler, spec.default_steps if args.steps is None else args.steps, eta=args.eta)
    spec = spec if args.numerics is None else spec.with_numerics(args.numerics)
    tokenizer = Tokenizer(spec.text)
    tokenizer(prompts if len(prompts) > 1 else prompts[0])
    tokenizer(args.negative or "", name="negative_prompt")


def batches(prompts: list[str], n: int, index: int, size: int) -> list[Batch]:
    """Returns the batches for `n` pictures of each prompt: all of one size, so that only one graph is compiled.

    What is in a batch with it never changes a picture, so they may be filled up.
    """
    if n == 1:
        length, starts = _even(len(prompts), size)
        groups = [prompts[start : start + length] for start in starts]
        return [Batch(group + group[-1:] * (length - len(group)), index, False, len(group)) for group in groups]
    length, starts = _even(n, size)
    return [Batch([p] * length, index + start, True, min(length, n - start)) for p in prompts for start in starts]


def _even(count: int, size: int) -> tuple[int, range]:
    parts = -(-count // size)
    length = -(-count // parts)
    return length, range(0, count, length)


def _run(model, args, seed: int, jobs: list[Batch]) -> Iterator:
    """Yields the pictures of each batch, moving a progress bar."""
    from tqdm import tqdm

    from tfsd.images import Images

    desc = "waiting" if _is_export(args) else "compiling"
    own = {} if _is_export(args) else {"eta": args.eta}
    bar = tqdm(total=None, desc=desc, unit="step", leave=False, disable=True if args.quiet else None)
    count = sum(job.keep for job in jobs)
    with bar:
        for done, job in enumerate(jobs):

            def advance(step: int, steps: int, done: int = done, before: int = bar.n):
                if step == 0:  # of a server that has not begun, or does not tell
                    return
                bar.total = before + steps * (len(jobs) - done)
                bar.set_description(f"picture {sum(job.keep for job in jobs[:done]) + 1} of {count}", refresh=False)
                bar.update(before + step - bar.n)

            images = model.text_to_image(
                job.prompts[0] if job.same else job.prompts,
                len(job.prompts) if job.same else 1,
                seed=seed if job.same else [seed] * len(job.prompts),
                negative_prompt=args.negative,
                num_steps=args.steps,
                guidance_scale=args.scale,
                sampler=args.sampler,
                height=args.height,
                width=args.width,
                index=job.index,
                callback=None if args.quiet else advance,
                **own,
            )
            yield Images(images[: job.keep], images.recipes[: job.keep])


def _joined(parts: list):
    import numpy as np

    from tfsd.images import Images

    return Images(np.concatenate(parts), [recipe for images in parts for recipe in images.recipes])


def _save(images, name: Path, args):
    """Writes pictures, and their name to standard output."""
    from tqdm import tqdm

    from tfsd.image_files import FileThereError
    from tfsd.images import free_names

    while True:
        try:
            if args.grid:
                images.save_grid(name, args.columns, overwrite=args.out is not None)
            else:
                images.save(name, overwrite=args.out is not None)
            break
        except FileThereError:
            if args.out is not None:
                raise
            name = free_names([images.recipes[0]["prompt"]])[0]  # another program took the name in the meantime
    tqdm.write(str(name))  # on a line of its own where a progress bar stands
    sys.stdout.flush()
