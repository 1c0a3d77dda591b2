"""How a server bears many requests at once: throughput, latency, batches, refusals, and what it adds to the model's time."""

import asyncio
import base64
import json
import math
import ssl
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import aiohttp
import numpy as np
from tqdm import tqdm

from tfsd.progress import Cancelled
from tfsd.serving.client.aio import AsyncClient
from tfsd.serving.load_test import server_metrics
from tfsd.serving.wire.errors import ServerError

PROMPT = "a red star above a blue house at night"


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of a server.

    `requests` in all, `concurrency` at once, `rows` pictures in each, of `num_steps` (None: the model's own); whatever is
    not answered when `seconds` are over is given up.
    """

    requests: int = 64
    concurrency: int = 8
    rows: int = 1
    num_steps: int | None = None
    seconds: float = 300.0


class Sample(NamedTuple):
    """What became of a request: "OK", a code of `tfsd.serving.wire.errors.CODES`, or "UNFINISHED" when the time was over."""

    seconds: float
    code: str
    pngs: list[bytes]


class LoadTest:
    """Asks one model of one server; use it in `async with`. Each of its measurements returns what goes into JSON."""

    def __init__(
        self,
        address: str,
        load: Load,
        *,
        model: str = "tiny",
        rest: str | None = None,
        token: str | None = None,
        tls: str | Path | None = None,
        bars: bool = False,
    ):
        """`address` and `rest` are HOST:PORT of gRPC and of HTTP; without the latter the server's own counts are missing.

        `token` and `tls`, the file of a certificate authority, are for both.
        """
        self.load, self.model, self.rest = load, model, rest
        self._client = AsyncClient(address, model=model, retries=0, timeout=load.seconds, token=token, tls=tls)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._tls = None if tls is None else ssl.create_default_context(cafile=tls)
        self._url = f"{'http' if tls is None else 'https'}://{rest}"
        self._bars = bars
        self._end = math.inf

    async def __aenter__(self) -> "LoadTest":
        connector = None if self._tls is None else aiohttp.TCPConnector(ssl=self._tls)
        self._http = aiohttp.ClientSession(connector=connector, headers=self._headers)
        return self

    async def __aexit__(self, *_):
        await self._http.close()
        await self._client.close()

    async def warm_up(self):
        """Asks for one picture: what a server does only once shall not count. The time begins.

        Raises: `ServerError`, `ValueError` or `TimeoutError` if there is no picture.
        """
        self._end = time.monotonic() + self.load.seconds
        await self._client.text_to_png(PROMPT, self.load.rows, 0, num_steps=self.load.num_steps)

    async def run(self) -> dict:
        """Returns throughput, latencies, errors, and by the server's own counts batches and refusals."""
        load, seeds, samples = self.load, iter(range(self.load.requests)), []

        async def ask_on():
            for seed in seeds:
                if self._left() <= 0:
                    return
                samples.append(await self._ask(seed))
                bar.update()

        before = await self.counts()
        started = time.perf_counter()
        with self._bar("load", load.requests) as bar:
            await asyncio.gather(*(ask_on() for _ in range(min(load.concurrency, load.requests))))
        seconds = time.perf_counter() - started
        after = await self.counts()
        codes = Counter(sample.code for sample in samples)
        answered = [1000 * sample.seconds for sample in samples if sample.code == "OK"]
        unfinished = codes.pop("UNFINISHED", 0) + load.requests - len(samples)
        return {
            "requests": load.requests,
            "concurrency": min(load.concurrency, load.requests),
            "answered": codes.pop("OK", 0),
            "unfinished": unfinished,
            "errors": dict(sorted(codes.items())),
            "seconds": seconds,
            "pictures_per_second": load.rows * len(answered) / seconds,
            "latency_ms": latencies(answered),
        } | server_metrics.difference(before, after)

    async def compare(self) -> dict:
        """Returns how much sooner `concurrency` requests are answered together than one after another.

        Both are done in turn, `requests // concurrency` times, with the same seeds, so that their bytes can be compared.
        A turn in which a request failed does not count.
        """
        count = self.load.concurrency
        turns, failed, same = [], Counter(), True
        rounds = max(1, self.load.requests // count)
        with self._bar("compare", 2 * rounds * count) as bar:
            for _ in range(rounds):
                if self._left() <= 0:
                    break
                started = time.perf_counter()
                alone = [await self._ask(seed) for seed in range(count)]
                between = time.perf_counter()
                together = await asyncio.gather(*(self._ask(seed) for seed in range(count)))
                ended = time.perf_counter()
                bar.update(2 * count)
                if codes := [sample.code for sample in [*alone, *together] if sample.code != "OK"]:
                    failed.update(codes)
                    continue
                turns.append((between - started, ended - between))
                same = same and [sample.pngs for sample in alone] == [sample.pngs for sample in together]
        sequential, concurrent = (1000 * statistics.median(times) if turns else None for times in zip(*turns or [(0, 0)]))
        return {
            "concurrent": count,
            "rounds": len(turns),
            "sequential_ms": sequential,
            "concurrent_ms": concurrent,
            "ratio": sequential / concurrent if turns else None,
            "same_bytes": same if turns else None,
            "errors": dict(sorted(failed.items())),
        }

    async def overhead(self, folder: Path) -> dict:
        """Returns the milliseconds that the server adds to a request for one picture, over gRPC and over REST.

        The model's own time is that of the engine of `folder` in this process: from inputs to PNG, in one go. The three are
        done in turn, `requests` times, each twice and timed once, and what is added is the median of the differences of each
        turn: so whatever slows the machine for a while slows all three. Two processes run the same program at speeds that
        differ by some percent, though, so `beyond_model_ms` is, with the server's own clock, the mean time of its requests less
        the mean time that its model computed for them.

        Raises: `CheckpointError` for a folder that cannot be loaded; `ServerError` for REST without an answer.
        """
        from tfsd.serving.server.engine import Engine

        engine = Engine(folder)
        engine.warm_up()
        inputs = engine.defaults() | {"prompt": np.array([PROMPT.encode()], object)}
        if self.load.num_steps is not None:
            inputs["num_steps"] = np.array([self.load.num_steps], np.int32)
        turns, same, served, before = [], True, [], await self.counts()
        with self._bar("overhead", 3 * self.load.requests) as bar:
            for seed in range(self.load.requests):
                if self._left() <= 0:
                    break
                seeded = inputs | {"seed": np.array([seed], np.int64)}
                ways = [lambda given=seeded: _own(engine, given), lambda seed=seed: self._one_by_grpc(seed)]
                ways += [lambda given=seeded: self._by_rest(given)] if self.rest is not None else []
                milliseconds, pictures = [], set()
                for way in ways:
                    for _ in range(2):  # the first only warms what the way before it let go cold: caches and threads
                        started = time.perf_counter()
                        pictures.add(await way())
                        milliseconds.append(1000 * (time.perf_counter() - started))
                    bar.update(1)
                served += milliseconds[2:]
                turns.append(milliseconds[1::2])
                same = same and len(pictures) == 1
        computed = server_metrics.model_milliseconds(before, await self.counts())
        beyond = statistics.fmean(served) - computed if served and computed is not None else None
        return _added(np.array(turns), rest=self.rest is not None) | {
            "beyond_model_ms": beyond,
            "same_bytes": same if turns else None,
        }

    async def counts(self) -> dict | None:
        """Returns what the server counts of itself; None of a server that does not tell."""
        if self.rest is None:
            return None
        try:
            async with self._http.get(f"{self._url}/metrics", timeout=aiohttp.ClientTimeout(10)) as response:
                return server_metrics.read(await response.text()) if response.status == 200 else None
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError):
            return None

    async def _ask(self, seed: int) -> Sample:
        started, pngs, code = time.perf_counter(), [], "OK"
        try:
            pngs = await self._by_grpc(seed, self.load.rows)
        except TimeoutError:
            code = "UNFINISHED" if self._left() <= 0 else "DEADLINE_EXCEEDED"
        except ValueError:
            code = "INVALID_ARGUMENT"
        except Cancelled:
            code = "CANCELLED"
        except ServerError as error:
            code = error.code
        return Sample(time.perf_counter() - started, code, pngs)

    async def _by_grpc(self, seed: int, rows: int = 1) -> list[bytes]:
        timeout = max(self._left(), 1e-3)
        return await self._client.text_to_png(PROMPT, rows, seed, num_steps=self.load.num_steps, timeout=timeout)

    async def _one_by_grpc(self, seed: int) -> bytes:
        return (await self._by_grpc(seed))[0]

    async def _by_rest(self, inputs: dict[str, np.ndarray]) -> bytes:
        columns = {name: [_plain(value) for value in array.tolist()] for name, array in inputs.items()}
        body = json.dumps({"signature_name": "text_to_png", "inputs": columns})
        url = f"{self._url}/v1/models/{quote(self.model, safe='')}:predict"
        timeout = aiohttp.ClientTimeout(max(self._left(), 1e-3))
        try:
            async with self._http.post(url, data=body, timeout=timeout) as response:
                answer = await response.json()
                if response.status != 200:
                    raise ServerError("UNKNOWN", f"{self.rest} answered {response.status}: {answer.get('error')}")
        except (aiohttp.ClientError, ValueError, AttributeError) as error:
            raise ServerError("UNAVAILABLE", f"{self.rest} gave no answer over REST: {error}") from error
        except asyncio.TimeoutError:
            raise TimeoutError(f"{self.rest} did not answer over REST in time.") from None
        return base64.b64decode(answer["outputs"]["png_bytes"][0]["b64"])

    def _left(self) -> float:
        return self._end - time.monotonic()

    def _bar(self, name: str, total: int):
        return tqdm(total=total, desc=name, unit="request", disable=None if self._bars else True)


def latencies(milliseconds: Sequence[float]) -> dict[str, float] | None:
    """Returns percentiles: that of which so many in a hundred are at most as long; None for none at all."""
    if not milliseconds:
        return None
    ordered = sorted(milliseconds)
    ranks = {f"p{share}": ordered[math.ceil(share / 100 * len(ordered)) - 1] for share in (50, 90, 99)}
    return ranks | {"max": ordered[-1], "mean": statistics.fmean(ordered)}


async def _own(engine, inputs: dict[str, np.ndarray]) -> bytes:
    """Returns the PNG file of a request for one picture, by the calls that the server makes, without its chunks."""
    job = engine.start(engine.prepare(inputs))
    job.advance(job.steps)
    return engine.png(job.results()[0])


def _added(turns: np.ndarray, *, rest: bool) -> dict:
    if not len(turns):
        return {"rounds": 0}
    columns = {"model_ms": turns[:, 0], "grpc_ms": turns[:, 1], "grpc_added_ms": turns[:, 1] - turns[:, 0]}
    if rest:
        columns |= {"rest_ms": turns[:, 2], "rest_added_ms": turns[:, 2] - turns[:, 0]}
    return {"rounds": len(turns)} | {name: float(np.median(column)) for name, column in columns.items()}


def _plain(value):
    return value.decode() if isinstance(value, bytes) else value
