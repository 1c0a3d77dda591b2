"""Batches: which of the waiting rows are computed together."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

from tfsd.serving.server.active_request import ActiveRequest


class Member(NamedTuple):
    """A row in a batch: row `index` of `request`."""

    request: ActiveRequest
    index: int  # type: ignore[assignment]  # hides the method of tuples
    row: Any


class Batch(NamedTuple):
    """Rows that `engine` computes in one job."""

    engine: Any
    kind: Hashable
    members: list[Member]

    def requests(self) -> set[ActiveRequest]:
        """Returns the requests that have rows in the batch."""
        return {member.request for member in self.members}


def choose_batch(
    requests: Iterable[ActiveRequest], now: float, *, wait: float, may_run: Callable[[Any], bool]
) -> tuple[Batch | None, float | None]:
    """Returns the next batch, or None and the seconds until one is due (None if time alone makes none due).

    The oldest row goes first, together with all rows that may share its batch. A batch that is not full waits for further
    rows until `wait` seconds after the arrival of its oldest row. Rows of engines that may not run do not hold up others.

    Args:
        requests: those with waiting rows, in the order of arrival.
        now: the time on the clock of `time.monotonic`.
        may_run: says whether an engine may run one more job.
    """
    soonest = None
    for group in _groups(requests, may_run):
        first = group[0]
        engine = first.request.engine
        due = first.request.arrived + wait - now
        if first.row.alone or len(group) >= engine.batch_rows or due <= 0:
            return Batch(engine, first.request.batch_kind(first.index), group), None
        soonest = due if soonest is None else min(soonest, due)
    return None, soonest


def _groups(requests: Iterable[ActiveRequest], may_run: Callable[[Any], bool]) -> list[list[Member]]:
    """Returns the waiting rows in groups that could be batches, each with its oldest row first."""
    groups: dict[tuple, list[Member]] = {}
    for request in requests:
        if may_run(request.engine):
            for index in request.waiting:
                group = groups.setdefault((id(request.engine), request.batch_kind(index)), [])
                if len(group) < request.engine.batch_rows:
                    group.append(Member(request, index, request.rows[index]))
    return list(groups.values())
