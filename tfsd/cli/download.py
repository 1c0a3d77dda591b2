"""`tfsd download`: published weights become a model folder in the cache."""

import sys

from tfsd.cli.parsing import add_command
from tfsd.cli.terminal import print_path, quiet_tensorflow, stages
from tfsd.specs.limits import DTYPES

EXAMPLES = """  tfsd download sd-1.4                      shows the licence of the weights, downloads nothing
  tfsd download sd-1.4 --accept-licence     4.3 GB; continues where it was interrupted
"""


def add_download(commands):
    """Adds the command to the parser."""
    parser = add_command(
        commands,
        "download",
        download,
        help="download published weights",
        description="Fetches the published weights of a preset, checks their hashes and makes a model folder of them. "
        "Nothing else in tfsd ever downloads.",
        examples=EXAMPLES,
    )
    add = parser.add_argument
    add("preset", metavar="PRESET", help="a name from `tfsd models`")
    add("--accept-licence", action="store_true", help="accept the licence that is shown without it")
    add("--offline", action="store_true", help="use the files fetched before, no network")
    add("--dtype", choices=DTYPES, default="float32", help="to store (default: float32)")
    add("--quiet", action="store_true", help="no progress")
    return parser


def download(args) -> int:
    """Runs the command."""
    from tfsd import hub

    text = hub.notice(args.preset)
    if args.accept_licence:
        print(text, file=sys.stderr)
        with stages(args.quiet) as shown:
            quiet_tensorflow(shown, drawing=False)
    from tfsd.converters import convert

    folder = hub.download(
        args.preset,
        convert=convert,
        accept_licence=args.accept_licence,
        offline=args.offline,
        dtype=args.dtype,
        progress=not args.quiet,
    )
    print_path(folder)
    return 0
