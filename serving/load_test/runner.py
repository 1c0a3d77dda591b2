"""Load tests: throughput, latency, batches and refusals under many requests, and the time that a server adds to the model's."""

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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp
import numpy as np
from tqdm import tqdm

from tfsd.progress import Cancelled
from tfsd.serving.client.aio import AsyncClient
from tfsd.serving.load_test import overhead, server_metrics
from tfsd.serving.load_test.overhead import Way
from tfsd.serving.wire.errors import ServerError


@dataclass(frozen=True, kw_only=True)
class Load:
    """The requests of a load test.

    `requests` in total, `concurrency` at once, each for `rows` images with `num_steps` (None: the model's default). After
    `seconds`, the test gives up requests that are not answered.
    """

    requests: int = 64
    concurrency: int = 8
    rows: int = 1
    num_steps: int | None = None
    seconds: float = 300.0


class Sample(NamedTuple):
    """The outcome of a request: "OK", a code of `tfsd.serving.wire.errors.CODES`, or "UNFINISHED" if the time was over."""

    seconds: float
    code: str
    pngs: list[bytes]


class LoadTest:
    """Measures one model of one server, in an `async with` block. Each measurement returns an object for the JSON report."""

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
        """`address` and `rest` are HOST:PORT of gRPC and of HTTP; without `rest`, the report lacks the server's own metrics.

        `token` and `tls`, the file of a certificate authority, are used for both.
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
        """Requests one image, so that what a server does only once is not measured, and starts the clock.

        Raises: `ServerError`, `ValueError` or `TimeoutError` if the request fails.
        """
        self._end = time.monotonic() + self.load.seconds
        await self._client.text_to_png(overhead.PROMPT, self.load.rows, 0, num_steps=self.load.num_steps)

    async def run(self) -> dict:
        """Returns throughput, latencies and errors, and from the server's metrics batches and refusals."""
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
        """Returns how much faster `concurrency` requests are answered together than one after another.

        Both ways alternate, `requests // concurrency` times, with the same seeds, so that their bytes can be compared.
        A round in which a request failed does not count.
        """
        count = self.load.concurrency
        turns, same = [], True
        failed: Counter[str] = Counter()
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
        found: dict[str, Any] = dict.fromkeys(("sequential_ms", "concurrent_ms", "ratio", "same_bytes"))
        if turns:
            sequential, concurrent = (1000 * statistics.median(times) for times in zip(*turns))
            found |= {"sequential_ms": sequential, "concurrent_ms": concurrent}
            found |= {"ratio": sequential / concurrent, "same_bytes": same}
        return {"concurrent": count, "rounds": len(turns), **found, "errors": dict(sorted(failed.items()))}

    async def overhead(self, folder: Path) -> dict:
        """Returns the milliseconds that the server adds to a request for one image, over gRPC and over REST.

        The model's own time is that of the engine of `folder` in this process, from inputs to PNG without chunks. The three
        ways alternate, `requests` times, so that anything that slows the machine for a while slows all of them; what the
        server adds is the median of the differences in each round. Two processes run the same program at speeds that differ
        by some percent, though. `beyond_model_ms` avoids this: by the server's own clock, the mean time of its requests minus
        the mean time that its model computed for them.

        Raises: `CheckpointError` for a folder that cannot be loaded; `ServerError` if REST does not answer.
        """
        engine, inputs = overhead.engine_and_inputs(folder, self.load.num_steps)
        turns, same, served, before = [], True, [], await self.counts()
        with self._bar("overhead", 3 * self.load.requests) as bar:
            for seed in range(self.load.requests):
                if self._left() <= 0:
                    break
                milliseconds, images = await overhead.timed(self._ways(engine, inputs, seed), bar)
                served += milliseconds[2:]
                turns.append(milliseconds[1::2])
                same = same and len(images) == 1
        computed = server_metrics.model_milliseconds(before, await self.counts())
        beyond = statistics.fmean(served) - computed if served and computed is not None else None
        return overhead.medians(np.array(turns), rest=self.rest is not None) | {
            "beyond_model_ms": beyond,
            "same_bytes": same if turns else None,
        }

    def _ways(self, engine, inputs: dict[str, np.ndarray], seed: int) -> list[Way]:
        """Returns the ways to the image of a seed: the engine here, gRPC and, if its address is known, REST."""
        inputs = inputs | {"seed": np.array([seed], np.int64)}
        ways: list[Way] = [partial(overhead.make_png, engine, inputs), partial(self._one_by_grpc, seed)]
        return ways if self.rest is None else [*ways, partial(self._by_rest, inputs)]

    async def counts(self) -> server_metrics.Counts | None:
        """Returns the server's metrics, as `server_metrics.read` does; None if they cannot be read."""
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
        return await self._client.text_to_png(overhead.PROMPT, rows, seed, num_steps=self.load.num_steps, timeout=timeout)

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
    """Returns percentiles by nearest rank, the maximum and the mean; None if there are no values."""
    if not milliseconds:
        return None
    ordered = sorted(milliseconds)
    ranks = {f"p{share}": ordered[math.ceil(share / 100 * len(ordered)) - 1] for share in (50, 90, 99)}
    return ranks | {"max": ordered[-1], "mean": statistics.fmean(ordered)}


def _plain(value):
    return value.decode() if isinstance(value, bytes) else value
