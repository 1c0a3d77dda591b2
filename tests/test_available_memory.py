"""The memory that is left: the least of what system, control groups and limits leave, from trees of files like Linux's."""

import subprocess
import sys

import pytest

from tfsd.arguments.checks import require_memory
from tfsd.runtime.memory import available_memory

KB, MB, GB = 2**10, 2**20, 2**30
V1_UNLIMITED = 9223372036854771712


def tree(root, files: dict):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content))


@pytest.fixture
def machine(tmp_path):
    """Returns a function that writes files of a machine with 8 GB free, and returns the memory that is left there."""

    def left(groups: dict, cgroup: str = "0::/a/b\n", meminfo: str = f"MemTotal: 999 kB\nMemAvailable:  {8 * MB} kB\n"):
        tree(tmp_path / "proc", {"meminfo": meminfo, "self/cgroup": cgroup})
        tree(tmp_path / "cgroup", groups)
        return available_memory(tmp_path / "proc", tmp_path / "cgroup")

    return left


def v2(limit, usage, inactive=0) -> dict:
    return {"memory.max": limit, "memory.current": usage, "memory.stat": f"anon 5\ninactive_file {inactive}\n"}


def v1(limit, usage, inactive=0) -> dict:
    stat = f"cache 5\ninactive_file 7\ntotal_inactive_file {inactive}\n"
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": usage, "memory.stat": stat}


def under(folder: str, files: dict) -> dict:
    return {f"{folder}/{name}": value for name, value in files.items()}


def test_without_groups_it_is_what_the_system_has(machine):
    assert machine({}) == 8 * GB


def test_a_groups_limit_counts_less_its_usage_but_for_cache_that_can_be_dropped(machine):
    assert machine(under("a/b", v2(2 * GB, 1 * GB, 256 * MB))) == 1 * GB + 256 * MB


def test_the_narrowest_of_nested_groups_counts(machine):
    groups = under("a/b", v2("max", 1)) | under("a", v2(3 * GB, 2 * GB))
    assert machine(groups) == 1 * GB
    assert machine(groups | under("a/b", v2(3 * GB, GB // 2))) == 1 * GB
    assert machine(groups | under("a/b", v2(GB, GB // 2))) == GB // 2


def test_version_1_counts_likewise_and_its_highest_number_is_no_limit(machine):
    lines = "5:cpu,cpuacct:/x\n4:memory:/docker/id\n0::/\n"
    assert machine(under("memory/docker/id", v1(V1_UNLIMITED, 1)), lines) == 8 * GB
    assert machine(under("memory/docker", v1(2 * GB, GB, 3 * MB)), lines) == GB + 3 * MB
    assert machine(under("memory/docker/id", v1(GB, GB)), lines) == 0


def test_a_container_that_sees_its_own_group_as_the_root_is_limited_by_it(machine):
    """The path is the host's, and below the container's mount it does not exist."""
    assert machine(v2(2 * GB, GB), "0::/docker/0123\n") == GB
    assert machine(under("memory", v1(GB, 0)), "4:memory:/docker/0123\n") == GB


def test_usage_above_the_limit_leaves_nothing(machine):
    assert machine(under("a/b", v2(GB, 2 * GB))) == 0


@pytest.mark.parametrize("text", ["", "nonsense", "-5", "1e9", "max"])
def test_what_cannot_be_read_limits_nothing(machine, text):
    assert machine(under("a/b", v2(text, GB))) == 8 * GB
    assert machine({}, cgroup=text) == 8 * GB


def test_without_linux_files_psutil_tells(tmp_path):
    psutil = pytest.importorskip("psutil")
    assert 0 < available_memory(tmp_path, tmp_path) <= psutil.virtual_memory().total


def test_this_machine_has_some():
    assert available_memory() > 64 * MB


def test_a_limit_of_the_process_counts():
    script = (
        "import resource; from tfsd.runtime.memory import available_memory; size = 3 * 2**30;"
        "resource.setrlimit(resource.RLIMIT_AS, (size, size)); print(available_memory())"
    )
    left = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert 2 * GB < left < 3 * GB


def test_too_little_memory_is_an_error_that_says_how_much_there_is():
    with pytest.raises(ValueError, match=r"The attention of a batch needs 1048576 GB of memory; \d+\.\d GB are free"):
        require_memory(2**50, "a batch")
    require_memory(1, "a batch")
