"""Makes tables of the benchmark's results for device files: rows of text and their header."""

Table = tuple[list[tuple[str, ...]], tuple[str, ...]]
_TIMES = ("open", "first", "median", "p90", "memory", "TensorFlow", "LiteRT / TF")


def bundle_table(found: dict) -> Table:
    """Returns a row for every signature in the result of `bench_bundle`."""
    rows = [(one["part"], one["signature"], megabytes(one["file_bytes"]), *_times(one)) for one in found["signatures"]]
    return rows, ("part", "signature", "file", *_TIMES)


def conversion_table(found: dict) -> Table:
    """Returns a row for every float32 file that `bench_full_size` converted; dashes where that failed."""
    rows: list[tuple[str, ...]] = []
    for one in found["conversions"]:
        making = (
            ("failed",)
            if "error" in one
            else (megabytes(one["file_bytes"]), seconds(one["seconds"]), megabytes(one["peak_bytes"]))
        )
        rows.append((one["part"], f"{one['size']} px", *making))
    return _filled(rows, ("part", "picture", "file", "conversion", "its memory"))


def full_size_table(found: dict) -> Table:
    """Returns a row for every part, size and recipe in the result of `bench_full_size`; dashes where one failed."""
    rows: list[tuple[str, ...]] = []
    for one in found["signatures"]:
        about = (one["part"], f"{one['size']} px", one["quantize"])
        if "error" in one:
            rows.append((*about, "failed"))
            continue
        lint = f"{len(one['lint'])} found" if one["lint"] else "clean"
        making = (megabytes(one["file_bytes"]), seconds(one["quantize_s"]), megabytes(one["quantize_peak_bytes"]), lint)
        rows.append((*about, *making, *_times(one)))
    return _filled(rows, ("part", "picture", "quantize", "file", "quantizing", "its memory", "lint", *_TIMES))


def _filled(rows: list[tuple[str, ...]], header: tuple[str, ...]) -> Table:
    return [row + ("-",) * (len(header) - len(row)) for row in rows], header


def _times(one: dict) -> tuple[str, ...]:
    times = (seconds(one[name]) for name in ("load_s", "first_s", "median_s", "p90_s"))
    ratio = "-" if one["ratio"] is None else f"{one['ratio']:.2f}"
    return (*times, megabytes(one["peak_bytes"]), "-" if one["tensorflow_s"] is None else seconds(one["tensorflow_s"]), ratio)


def seconds(value: float) -> str:
    """Returns a time in seconds or, if shorter, in milliseconds, with three significant digits."""
    return f"{value:.3g} s" if 1 <= value < 100 else f"{value:.0f} s" if value >= 100 else f"{1000 * value:.3g} ms"


def megabytes(value: int) -> str:
    """Returns bytes as megabytes."""
    return f"{value / 1e6:.0f} MB" if value >= 100e6 else f"{value / 1e6:.1f} MB"
