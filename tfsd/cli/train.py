"""`tfsd train`: trains the included model, or another like it."""

from pathlib import Path

from tfsd.cli.parsing import add_command, integer
from tfsd.cli.targets import require_writable
from tfsd.cli.terminal import print_path, quiet_tensorflow, stages
from tfsd.runtime.backend import backend

EXAMPLES = """  tfsd train runs/tiny                        all stages, hours on a CPU; continues where it was interrupted
  tfsd train runs/try --steps 100 --stage autoencoder
  tfsd train runs/more --from tiny            goes on with the weights of the embedded model
  KERAS_BACKEND=jax tfsd train runs/tiny      on a GPU that JAX supports
"""


def add_train(commands):
    """Adds the command to the parser."""
    parser = add_command(
        commands,
        "train",
        train,
        help="train the included model",
        description="Trains the included model on captioned scenes that it draws itself, and keeps checkpoints in a folder.",
        examples=EXAMPLES,
    )
    parser.add_argument("folder", metavar="FOLDER", help="for checkpoints, sample grids, logs and the finished model")
    parser.add_argument("--steps", type=integer(1), default=None, help="stop each stage after so many (default: the recipe's)")
    parser.add_argument(
        "--stage",
        choices=("all", "autoencoder", "decoder", "denoiser"),
        default="all",
        help="the VAE, then text encoder and denoiser (default: all)",
    )
    parser.add_argument("--from", dest="begin", metavar="MODEL", help="begin with the weights of a model, such as tiny")
    parser.add_argument("--seed", type=integer(0, 2**31 - 1), default=0, help="seed of weights and images (default: 0)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def train(args) -> int:
    """Runs the command."""
    require_writable(Path(args.folder))
    if backend()[0] == "tensorflow":  # training needs Keras alone
        with stages(args.quiet) as shown:
            quiet_tensorflow(shown)
    from tfsd.training.train import train as run

    print_path(run(args.folder, stage=args.stage, steps=args.steps, seed=args.seed, begin=args.begin, progress=not args.quiet))
    return 0
