"""The memory that this process can still allocate: the least that the system, its control groups and its limits leave.

Nothing here fails where a system lacks one of them: what cannot be read limits nothing.
"""

from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 2**62  # and above is "no limit" in version 1 of control groups, which writes the highest multiple of a page
# File with the limit, with the usage, and in memory.stat the page cache that the kernel gives back when it is needed.
_VERSION_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
_VERSION_2 = "memory.max", "memory.current", "inactive_file"


def available_memory(proc: Path | None = None, cgroups: Path | None = None) -> int | None:
    """Returns how many bytes this process may take before the system refuses more or ends a process; None where unknown.

    `proc` and `cgroups` are the roots of the two file systems that Linux tells it in; by default its own.
    """
    proc, cgroups = proc or PROC, cgroups or CGROUPS
    known = [_of_system(proc), *_of_groups(proc, cgroups), *_of_limits(proc)]
    return min((max(0, free) for free in known if free is not None), default=None)


def _of_system(proc: Path) -> int | None:
    """Returns the memory that the system can give without swapping."""
    free = _table(proc / "meminfo").get("MemAvailable")
    if free is not None:
        return free * 1024
    try:
        import psutil  # on macOS and Windows; Linux has told above
    except ImportError:
        return None
    return psutil.virtual_memory().available


def _of_groups(proc: Path, cgroups: Path) -> Iterator[int | None]:
    """Yields what each control group that holds this process leaves: its own group, and those that it is nested in."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if not controllers:
            mounts, files = (cgroups, cgroups / "unified"), _VERSION_2
        elif "memory" in controllers.split(","):
            mounts, files = (cgroups / "memory", cgroups / controllers), _VERSION_1
        else:
            continue
        steps = [step for step in path.split("/") if step not in ("", "..")]
        for mount in mounts:
            # In a container its own group may be the mount's root, under a path of the host's: all that exist count.
            for depth in range(len(steps) + 1):
                yield _of_group(mount.joinpath(*steps[:depth]), *files)


def _of_group(group: Path, limit_file: str, usage_file: str, cache: str) -> int | None:
    limit, usage = (_text(group / name).strip() for name in (limit_file, usage_file))
    if not limit.isdigit() or not usage.isdigit() or int(limit) >= _UNLIMITED:  # "max" is no limit
        return None
    return int(limit) - int(usage) + _table(group / "memory.stat").get(cache, 0)


def _of_limits(proc: Path) -> Iterator[int]:
    """Yields what is left of the process' own limits (`ulimit -v`, `ulimit -d`)."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used = _table(proc / "self" / "status")
    for kind, name in (("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")):
        limit = resource.getrlimit(getattr(resource, kind))[0]
        if limit != resource.RLIM_INFINITY and name in used:
            yield limit - used[name] * 1024


def _table(path: Path) -> dict[str, int]:
    """Returns the numbers of a file with a name and a number per line, as "MemAvailable:  123 kB" or "inactive_file 123"."""
    rows = (line.split() for line in _text(path).splitlines())
    return {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
