"""`tfsd serve`: serves exported models with TensorFlow Serving's gRPC and REST APIs, and a page to try them."""

import importlib.util
import os
import sys
import threading
from pathlib import Path

from tfsd.cli.parsing import UsageError, add_command, integer, real
from tfsd.cli.remote import token_in
from tfsd.cli.terminal import printable, quiet_tensorflow
from tfsd.errors import CheckpointError
from tfsd.progress import Stages

NEEDED = ("grpc", "grpc_health", "grpc_reflection", "aiohttp", "prometheus_client", "tensorflow_serving")
EXAMPLES = """  tfsd export saved_model --model tiny --out models && tfsd serve models
  tfsd serve models --grpc-port 0 --rest-port 0         free ports; the two lines that it prints tell which
  tfsd serve models --host 0.0.0.0 --token-file token.txt --tls-cert cert.pem --tls-key key.pem
  tfsd serve --model-config-file models.config          TensorFlow Serving's own configuration: versions, labels

  curl http://127.0.0.1:8501/v1/models/tiny             which versions are loaded
  curl http://127.0.0.1:8501/metrics                    for Prometheus
  tfsd generate "a red star" --server 127.0.0.1:8500

Behind a proxy, or under a name of a Kubernetes service, name it: --allowed-hosts tfsd,tfsd.example.com. Web pages of other
sites may use the server only with --cors-origin. Neither concerns gRPC, which pages cannot send.

It prints two lines, the gRPC address and the page, once it takes requests; what it logs goes to standard error, without
prompts. A new version beside the old one (models/tiny/2) is loaded while the old one goes on serving. SIGTERM or Ctrl-C
lets requests under way end; a second one does not wait for them."""


def add_serve(commands):
    """Adds the command to the parser."""
    parser = add_command(
        commands,
        "serve",
        serve,
        help="serve exported models over gRPC and HTTP",
        description="Serves exported models: TensorFlow Serving's gRPC and REST APIs, and a page to try them.",
        examples=EXAMPLES,
    )
    add = parser.add_argument
    add("dir", metavar="DIR", nargs="?", help="folder of models (DIR/tiny/1), or one model (DIR/1)")
    add("--model-config-file", metavar="FILE", help="ModelServerConfig as text, in place of DIR")
    add(
        "--poll-seconds",
        type=real(0, 86400),
        default=2.0,
        metavar="S",
        help="seconds between checks for new versions; 0: never (default: 2)",
    )
    _add_network(parser.add_argument_group("network"))
    _add_limits(parser.add_argument_group("limits"))
    add("--log-format", choices=("text", "json"), default="text", help="of the lines on standard error (default: text)")
    return parser


def _add_network(group):
    add = group.add_argument
    add("--host", default="127.0.0.1", help="address of both ports (default: 127.0.0.1, which only this machine can reach)")
    add("--grpc-port", type=integer(0, 65535), default=8500, metavar="PORT", help="0 takes a free one (default: 8500)")
    add("--rest-port", type=integer(0, 65535), default=8501, metavar="PORT", help="of REST and the page (default: 8501)")
    add("--tls-cert", metavar="PEM", help="certificate chain, for both ports")
    add("--tls-key", metavar="PEM", help="its private key")
    add("--token-file", metavar="FILE", help="file with the token that clients must send: authorization: Bearer TOKEN")
    add(
        "--allowed-hosts",
        action="extend",
        type=_words,
        default=[],
        metavar="NAMES",
        help="more names under which HTTP clients reach this server, such as tfsd.example.com,.example.org; * for any "
        "(default: localhost, this machine's name and every IP address)",
    )
    add(
        "--cors-origin",
        action="extend",
        type=_words,
        default=[],
        metavar="ORIGINS",
        help="other sites whose pages may use this server, such as https://app.example.com; * for any (default: none)",
    )


def _words(text: str) -> list[str]:
    return [word for word in text.replace(",", " ").split() if word]


def _add_limits(group):
    add = group.add_argument
    add("--max-queue", type=integer(1, 100_000), default=64, metavar="ROWS", help="images that may wait (default: 64)")
    add("--batch-wait-ms", type=real(0, 10_000), default=2.0, metavar="MS", help="wait this long to fill a batch (default: 2)")
    size = real(0.001, 2047)
    add("--max-message-mb", type=size, metavar="MB", help="of a gRPC request (default: what the models take, at least 4)")
    add("--max-body-mb", type=size, metavar="MB", help="of a REST request (default: likewise, as text)")
    add("--rest-timeout", type=real(0.001, 86400), default=300.0, metavar="S", help="for a REST request (default: 300)")
    add("--grace", type=real(0, 86400), default=30.0, metavar="S", help="for requests under way at the end (default: 30)")


def serve(args) -> int:
    """Runs the command until a signal ends it."""
    if (args.dir is None) == (args.model_config_file is None):
        raise UsageError("give a folder of models or --model-config-file, one of the two. See tfsd serve --help.")
    if (args.tls_cert is None) != (args.tls_key is None):
        raise UsageError("--tls-cert and --tls-key belong together; give both or neither.")
    for path in (args.dir, args.model_config_file):
        if path is not None and not Path(path).exists():
            raise FileNotFoundError(f"{path} does not exist. tfsd export saved_model makes a folder of models.")
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f'tfsd: serving needs {", ".join(missing)}: pip install "tfsd[serving]"', file=sys.stderr)
        return 1
    token = None if args.token_file is None else token_in(args.token_file)
    with Stages(True) as shown:
        quiet_tensorflow(shown)
    return _run(args, token)


def _checked(flag: str, check, words: list[str]) -> tuple[str, ...]:
    """Returns checked words of an option. Raises: `UsageError`."""
    try:
        return tuple(check(word) for word in words)
    except ValueError as error:
        raise UsageError(f"{flag} {error}") from None


def _run(args, token: str | None) -> int:
    import asyncio

    from tfsd.serving.server.access import host_pattern, origin_pattern
    from tfsd.serving.server.logs import LOGGER, log_to
    from tfsd.serving.server.metrics import Metrics
    from tfsd.serving.server.models import Models
    from tfsd.serving.server.queue_limits import QueueLimits
    from tfsd.serving.server.server import Server, ServerOptions
    from tfsd.serving.wire.errors import ServerError

    log_to(sys.stderr, form=args.log_format)
    options = ServerOptions(
        host=args.host,
        grpc_port=args.grpc_port,
        rest_port=args.rest_port,
        message_mb=args.max_message_mb,
        body_mb=args.max_body_mb,
        rest_timeout=args.rest_timeout,
        tls_cert=args.tls_cert,
        tls_key=args.tls_key,
        token=token,
        grace=args.grace,
        allowed_hosts=_checked("--allowed-hosts", host_pattern, args.allowed_hosts),
        cors_origins=_checked("--cors-origin", origin_pattern, args.cors_origin),
    )
    if not options.is_local and (token is None or args.tls_cert is None):
        lacking = " and ".join([*(["--token-file"] if token is None else []), *(["--tls-cert"] if args.tls_cert is None else [])])
        LOGGER.warning(f"anyone who can reach {printable(args.host)} may use or overhear this server: it has no {lacking}")
    metrics = Metrics()
    try:
        source, root = (args.dir, None) if args.dir is not None else _config(Path(args.model_config_file))
        models = Models(source, root=root, poll_seconds=args.poll_seconds, metrics=metrics)
        limits = QueueLimits(max_queue_rows=args.max_queue, batch_wait_ms=args.batch_wait_ms)
        asyncio.run(Server(models, options, limits=limits, metrics=metrics).run(announce))
    except ServerError as error:
        raise CheckpointError(error.message) from error
    if any(thread.name.startswith("tfsd-") for thread in threading.enumerate()):
        # One still loads or computes. TensorFlow cannot be stopped in that, and crashes when the interpreter ends under it.
        sys.stderr.flush()
        os._exit(0)
    return 0


def _config(path: Path):
    """Returns the ModelServerConfig in a file, and the folder at which its relative paths begin."""
    from google.protobuf import text_format
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), ModelServerConfig()), path.absolute().parent
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not a ModelServerConfig in text form: {error}") from None


def announce(server):
    """Prints where the server is."""
    host = f"[{server.options.host}]" if ":" in server.options.host else server.options.host
    scheme = "https" if server.options.tls_cert else "http"
    print(f"gRPC {host}:{server.grpc_port}")
    print(f"page {scheme}://{host}:{server.rest_port}/", flush=True)
