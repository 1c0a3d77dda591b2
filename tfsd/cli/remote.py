"""`tfsd generate --server` and `--device-bundle`: images by an export, without a model loaded here."""

from pathlib import Path

from tfsd.arguments.table import DEVICE, GRAPH, PYTHON
from tfsd.cli.parsing import UsageError, integer, real
from tfsd.cli.request_options import fixed_options

_FIXED = {"dtype": "float32", "numerics": None, "no_jit": False}  # by the export; the defaults
_OF_IMAGES = fixed_options(PYTHON)  # options that need an image to begin with
_SERVER_ONLY = ("token_file", "tls_ca", "timeout")
_MAX_TOKEN_FILE = 8192  # bytes


def add_bundle_options(parser):
    """Adds the options about a device bundle to the parser of `generate`."""
    add = parser.add_argument_group("from a device bundle (of `tfsd export tflite`)").add_argument
    add("--device-bundle", default=None, metavar="DIR", help="draw with its TFLite files, as a phone does")
    add("--threads", type=integer(1, 256), default=None, help="of the CPU (default: 2)")


def add_server_options(parser):
    """Adds the options about a server to the parser of `generate`."""
    add = parser.add_argument_group("from a server (of `tfsd serve` or TensorFlow Serving)").add_argument
    add("--server", default=None, metavar="HOST:PORT", help="let this gRPC server make them; --model is its name there")
    add("--token-file", default=None, metavar="FILE", help="send the token that FILE holds; sent unencrypted without --tls-ca")
    add("--tls-ca", default=None, metavar="FILE", help="encrypt, and trust servers with a certificate by this authority")
    add("--timeout", type=real(0.001, 10**6), default=None, metavar="S", help="seconds for a batch (default: 300)")


def check_options(args):
    """Raises: `UsageError` for options of --server or --device-bundle without it, and for those that do not apply to it."""
    flags = args.flags
    for owner, example, names in (("server", "HOST:PORT", _SERVER_ONLY), ("device_bundle", "DIR", ("threads",))):
        for name in names:
            if getattr(args, owner) is None and getattr(args, name) is not None:
                raise UsageError(f"{flags[name]} requires {flags[owner]}. Add {flags[owner]} {example}")
    given = [flags[name] for name in ("server", "device_bundle") if getattr(args, name) is not None]
    if len(given) > 1:
        raise UsageError(f"give {' or '.join(given)}, not both")
    bundle = args.device_bundle is not None
    fixed = fixed_options(DEVICE if bundle else GRAPH) | _FIXED | ({"model": "tiny"} if bundle else {})
    for name, default in fixed.items() if given else ():
        if getattr(args, name) != default:
            why = "exports begin with noise" if name in _OF_IMAGES else "the export fixes it"
            raise UsageError(f"{flags[name]} cannot be given with {given[0]}: {why}. Leave it out")


def connect(args):
    """Returns the client for `args.server`, on which nothing was called yet.

    Raises: `UsageError` for an invalid address; `OSError` for files that cannot be read or if gRPC is missing.
    """
    try:
        import grpc  # noqa: F401
    except ImportError as error:
        raise OSError("--server needs gRPC, which is not installed: pip install grpcio") from error
    from tfsd.serving.client.sync import Client

    token = None if args.token_file is None else token_in(args.token_file)
    timeout = {} if args.timeout is None else {"timeout": args.timeout}
    return _Model(Client(args.server, model=args.model, token=token, tls=args.tls_ca, max_batch=min(args.batch, 8), **timeout))


class _Model:
    """A client whose failures are those of a command: one line, without the name of a class."""

    def __init__(self, client):
        self._client = client

    def text_to_image(self, *args, **kwargs):
        from tfsd.serving.wire.errors import ServerError

        try:
            return self._client.text_to_image(*args, **kwargs)
        except ServerError as error:
            raise OSError(f"{error.message.rstrip('.')} ({error.code})") from error


def token_in(name: str) -> str:
    """Returns the token in the file of --token-file. Raises: `UsageError`, `OSError`."""
    try:
        with open(name, "rb") as file:
            data = file.read(_MAX_TOKEN_FILE + 1)
        token = data.decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    if not token or len(data) > _MAX_TOKEN_FILE or len(token.split()) != 1:
        raise UsageError(f"--token-file must hold one word of ASCII; {Path(name)} does not")
    return token
