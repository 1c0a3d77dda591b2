"""`tfsd load-test`: throughput, latency and memory of a server under load."""

import importlib.util
import signal
import sys
from pathlib import Path

from tfsd.cli.parsing import UsageError, add_command, integer, real
from tfsd.cli.remote import token_in
from tfsd.cli.serve import NEEDED
from tfsd.cli.terminal import print_json, print_table, quiet_tensorflow
from tfsd.errors import shown

EXAMPLES = """  tfsd load-test models                                   starts `tfsd serve models` itself, and stops it
  tfsd load-test models --compare --overhead              the gain by batching, and the time that the server adds
  tfsd load-test models --requests 200 --concurrency 100 --max-queue 32     more than it accepts: shows what is refused
  tfsd load-test --server 127.0.0.1:8500 --rest 127.0.0.1:8501 --json       a server that runs already
  tfsd load-test --server 127.0.0.1:8500 --token-file token.txt --tls-ca cert.pem    one that asks for a token

Each request asks for --rows images of one prompt, each with another seed; --concurrency requests are always under way.
Latency is the time that a client waits for an answer: with more requests at once than the server has cores it is mostly
time in the queue. p90 means: 90 of 100 requests took at most as long. Batches are rows computed together in one
job: an exact export, which gives the same bytes alone and in a batch, has one row per job, and as many jobs at once as there
are cores.

--compare answers the same requests one after another and all at once; a ratio above 1 is the gain.
--overhead asks for single images and subtracts the time that the model needs for them in this process (it is loaded here,
too, from DIR): the rest is what gRPC and REST, queue and chunks of steps add.

It exits with 1 if a request failed for another reason than a full queue."""
_SERVER_ONLY = ("rest", "token_file", "tls_ca")
HOSTS = ("localhost", "[::1]")


def add_load_test(commands):
    """Adds the command to the parser."""
    parser = add_command(
        commands,
        "load-test",
        load_test,
        help="measure a server under many requests",
        description="Measures throughput, latency, batches, refusals and memory of `tfsd serve` under many requests.",
        examples=EXAMPLES,
    )
    add = parser.add_argument
    add("dir", metavar="DIR", nargs="?", help="folder of models to serve for the test, as for `tfsd serve`")
    add("--requests", type=integer(1, 100_000), default=64, metavar="N", help="requests in all (default: 64)")
    add("--concurrency", type=integer(1, 512), default=8, metavar="N", help="requests at once (default: 8)")
    add("--rows", type=integer(1, 8), default=1, metavar="N", help="images of one request (default: 1)")
    add("--steps", type=integer(1, 1000), default=None, metavar="N", help="steps of each image (default: the model's)")
    add("--seconds", type=real(0.1, 86400), default=300.0, metavar="S", help="after which it gives up (default: 300)")
    add("--compare", action="store_true", help="also --concurrency requests together against one after another")
    add("--overhead", action="store_true", help="also what the server adds to the model's own time; needs DIR")
    add("--max-queue", type=integer(1, 100_000), metavar="ROWS", help="images that may wait, in the server started for DIR")
    add("--model", metavar="NAME", help="which of the server's models (default: the only one in DIR, else tiny)")
    add("--json", action="store_true", help="as JSON")
    add = parser.add_argument_group("a server that runs already").add_argument
    add("--server", metavar="HOST:PORT", help="its gRPC address")
    add("--rest", metavar="HOST:PORT", help="its HTTP address, for its own counts and for --overhead")
    add("--token-file", metavar="FILE", help="send the token that FILE holds; sent unencrypted without --tls-ca")
    add("--tls-ca", metavar="FILE", help="encrypt, and trust servers with a certificate by this authority")
    add("--allow-remote", action="store_true", help="also load servers on other machines; only your own")
    return parser


def load_test(args) -> int:
    """Runs the command."""
    _check(args)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f'tfsd: load tests need {", ".join(missing)}: pip install "tfsd[serving]"', file=sys.stderr)
        return 1
    folder = None
    if args.dir is not None:
        args.model, folder = _model_in(Path(args.dir), args.model)
    args.model = args.model or "tiny"
    if args.overhead:
        quiet_tensorflow()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # else a server started here would be left behind
    try:
        report = _report_of_own(args, folder) if args.server is None else _report(args, folder, args.server, args.rest)
    finally:
        signal.signal(signal.SIGTERM, before)
    if args.json:
        print_json(report)
    else:
        print_table([[name, text] for name, text in _lines(report)], ("measured", "value"))
    errors = {**report["load"]["errors"], **report.get("compare", {}).get("errors", {})}
    return 0 if report["load"]["answered"] and not errors.keys() - {"RESOURCE_EXHAUSTED"} else 1


def _check(args):
    """Raises: `UsageError` for options that do not fit together; `FileNotFoundError`."""
    if args.dir is None and args.server is None:
        raise UsageError("give a folder of models to serve, or --server HOST:PORT. See tfsd load-test --help.")
    if args.dir is not None and not Path(args.dir).exists():
        raise FileNotFoundError(f"{args.dir} does not exist. tfsd export saved_model makes a folder of models.")
    if args.overhead and args.dir is None:
        raise UsageError("--overhead requires DIR, too: the model's own time is measured with the export in it.")
    for name in _SERVER_ONLY:
        if args.server is None and getattr(args, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} requires --server. Add --server HOST:PORT")
    if args.server is not None and args.max_queue is not None:
        raise UsageError("--max-queue cannot be given with --server: that server has its own queue. Leave it out")
    for name in ("server", "rest"):
        address = getattr(args, name)
        if address is not None and not args.allow_remote and not _is_local(address):
            raise UsageError(
                f"--{name} must be an address of this machine; got {shown(address)}. Add --allow-remote if that server is yours."
            )


def _is_local(address: str) -> bool:
    host = address.rpartition(":")[0]
    return host in HOSTS or (host.startswith("127.") and host.replace(".", "").isdigit())


def _model_in(folder: Path, name: str | None) -> tuple[str, Path]:
    """Returns the model to ask for, and the folder of the version that will answer."""
    from tfsd.serving.server.model_config import configs_in

    configs = configs_in(folder) if folder.is_dir() else {}
    if not configs:
        raise FileNotFoundError(f"{folder} holds no exported model. tfsd export saved_model writes one.")
    if name is None and len(configs) > 1:
        raise UsageError(f"{folder} holds several models: {', '.join(configs)}. Choose one with --model.")
    name = next(iter(configs)) if name is None else name
    if name not in configs:
        raise UsageError(f"--model must be one of {', '.join(configs)}; got {shown(name)}.")
    versions = configs[name].versions()
    return name, versions[max(versions)]


def _report_of_own(args, folder: Path | None) -> dict:
    from tfsd.serving.load_test.own_server import own_server

    options = [] if args.max_queue is None else ["--max-queue", str(args.max_queue)]
    if sys.stderr.isatty():
        print("starting the server ...", file=sys.stderr)
    with own_server(args.dir, options) as server:
        report = _report(args, folder, server.address, server.rest)
        report["memory"]["server_peak_bytes"] = server.peak_bytes()
    return report


def _report(args, folder: Path | None, address: str, rest: str | None) -> dict:
    import asyncio

    from tfsd.serving.wire.errors import ServerError

    try:
        return asyncio.run(_measure(args, folder, address, rest))
    except ServerError as error:
        raise OSError(f"{error.message.rstrip('.')} ({error.code})") from error


async def _measure(args, folder: Path | None, address: str, rest: str | None) -> dict:
    from tfsd.serving.load_test.runner import Load, LoadTest

    load = Load(requests=args.requests, concurrency=args.concurrency, rows=args.rows, num_steps=args.steps, seconds=args.seconds)
    report = {"model": args.model, "rows": args.rows, "num_steps": args.steps}
    token = None if args.token_file is None else token_in(args.token_file)
    options = {"rest": rest, "token": token, "tls": args.tls_ca, "bars": not args.json}
    async with LoadTest(address, load, model=args.model, **options) as test:
        await test.warm_up()
        report["load"] = await test.run()
        if args.compare:
            report["compare"] = await test.compare()
        if args.overhead and folder is not None:  # which `_check` requires
            report["overhead"] = await test.overhead(folder)
        counts = await test.counts()
    return report | {"memory": {"server_peak_bytes": None, "server_resident_bytes": counts and counts["resident_bytes"]}}


def _lines(report: dict):
    """Yields name and text of what a reader wants to know."""
    load, memory = report["load"], report["memory"]
    yield "answered", f"{load['answered']} of {load['requests']} requests, {load['concurrency']} at once"
    if load["unfinished"]:
        yield "unfinished", f"{load['unfinished']} when the time was over"
    yield from ((f"error {code}", str(count)) for code, count in load["errors"].items())
    yield "throughput", f"{load['pictures_per_second']:.2f} images/s over {load['seconds']:.1f} s"
    if load["latency_ms"]:
        yield "latency", ", ".join(f"{name} {value:.1f} ms" for name, value in load["latency_ms"].items())
    if load["batches"] is not None:
        yield "batches", ", ".join(f"{count} of {rows}" for rows, count in load["batches"].items()) or "none"
        yield "refused", ", ".join(f"{count} {reason}" for reason, count in load["refused"].items()) or "none"
    for name in ("peak", "resident"):
        if (size := memory[f"server_{name}_bytes"]) is not None:
            yield f"{name} memory", f"{size / 2**20:.0f} MiB"
    yield from _compared(report.get("compare"))
    yield from _overhead(report.get("overhead"))


def _compared(found: dict | None):
    if found is None:
        return
    if found["ratio"] is None:
        yield "concurrent", "no round in which all requests were answered"
        return
    times = f"{found['concurrent_ms']:.1f} ms together, {found['sequential_ms']:.1f} ms one after another"
    yield f"{found['concurrent']} requests", f"{times} (medians of {found['rounds']} rounds)"
    yield "ratio", f"{found['ratio']:.2f}; the bytes are {'the same' if found['same_bytes'] else 'not the same'}"


def _overhead(found: dict | None):
    if found is None:
        return
    if not found["rounds"]:
        yield "overhead", "not measured: the time was over"
        return
    yield "model alone", f"{found['model_ms']:.2f} ms in this process (median of {found['rounds']})"
    for name, title in (("grpc", "gRPC"), ("rest", "REST")):
        if f"{name}_ms" in found:
            yield f"one by {title}", f"{found[f'{name}_ms']:.2f} ms, {found[f'{name}_added_ms']:.2f} ms more"
    if found["beyond_model_ms"] is not None:
        yield "server adds", f"{found['beyond_model_ms']:.2f} ms to what its model computes (mean, by its own clock)"
    yield "bytes", "the same" if found["same_bytes"] else "not the same"
