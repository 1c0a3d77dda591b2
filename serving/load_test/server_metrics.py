"""The server's side of a load test: differences between two readings of its /metrics."""

from typing import TypedDict

from prometheus_client.parser import text_string_to_metric_families

MEMORY = "process_resident_memory_bytes"


class Counts(TypedDict):
    """A reading, summed over all models."""

    bounds: dict[float, float]  # jobs of at most so many rows
    jobs: float
    rows: float
    refused: dict[str, float]  # by reason
    resident_bytes: float | None
    model_seconds: float  # that the model computed for answered requests
    answers: float


def read(text: str) -> Counts:
    """Returns what a page of /metrics counts.

    Raises: `ValueError` if the text is not in Prometheus' format.
    """
    counts = Counts(bounds={}, jobs=0.0, rows=0.0, refused={}, resident_bytes=None, model_seconds=0.0, answers=0.0)
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            if name == "tfsd_batch_rows_bucket":
                bound = float(labels["le"])
                counts["bounds"][bound] = counts["bounds"].get(bound, 0.0) + value
            elif name == "tfsd_batch_rows_count":
                counts["jobs"] += value
            elif name == "tfsd_batch_rows_sum":
                counts["rows"] += value
            elif name == "tfsd_model_seconds_sum":
                counts["model_seconds"] += value
            elif name == "tfsd_model_seconds_count":
                counts["answers"] += value
            elif name == "tfsd_rejected_total":
                counts["refused"][labels["reason"]] = value
            elif name == MEMORY:
                counts["resident_bytes"] = value
    return counts


def difference(before: Counts | None, after: Counts | None) -> dict:
    """Returns the changes between two readings: jobs by number of rows ("3-4"), rows per job, refusals by reason.

    All are None if a reading is missing. `refused` has only reasons that occurred.
    """
    if before is None or after is None:
        return {"batches": None, "rows_per_batch": None, "refused": None}
    batches, low, below = {}, 1.0, 0.0
    for bound in sorted(after["bounds"]):
        count = after["bounds"][bound] - before["bounds"].get(bound, 0.0)
        if more := int(count - below):
            batches[_range(low, bound)] = more
        low, below = bound + 1, count
    jobs, rows = after["jobs"] - before["jobs"], after["rows"] - before["rows"]
    changes = {reason: int(value - before["refused"].get(reason, 0.0)) for reason, value in after["refused"].items()}
    return {
        "batches": batches,
        "rows_per_batch": rows / jobs if jobs else None,
        "refused": {reason: count for reason, count in sorted(changes.items()) if count},
    }


def model_milliseconds(before: Counts | None, after: Counts | None) -> float | None:
    """Returns how long the model computed per request between two readings; None if that is unknown."""
    if before is None or after is None or after["answers"] == before["answers"]:
        return None
    return 1000 * (after["model_seconds"] - before["model_seconds"]) / (after["answers"] - before["answers"])


def _range(low: float, high: float) -> str:
    if high == float("inf"):
        return f"{low:g} or more"
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"
