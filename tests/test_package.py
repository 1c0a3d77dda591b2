"""How the package hangs together: who may import whom, what stays light, and what an installed copy has."""

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tfsd

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for top in ("tfsd", "converters", "serving") for path in (ROOT / top).rglob("*.py"))
# From left to right: a module imports from columns to the left of its own and from its own package, never from neighbours.
COLUMNS = (
    {"tfsd.errors"},
    {"tfsd.specs", "tfsd.progress", "tfsd.finite", "tfsd.runtime", "tfsd.programs", "tfsd.samplers.names"},
    {"tfsd.arguments", "tfsd.models", "tfsd.text"},
    {"tfsd.noise", "tfsd.samplers", "tfsd.storage", "tfsd.sharing", "tfsd.compat"},
    {"tfsd.pipeline", "tfsd.images"},
    {"tfsd.generation"},
    {"tfsd.api", "tfsd.batch", "tfsd.hub", "tfsd.device"},
    {"tfsd.training", "tfsd.benchmark", "tfsd.cached_model"},
    {"tfsd.converters.importers", "tfsd.converters.saved_model"},
    {"tfsd.converters.device", "tfsd.converters"},  # a bundle is judged by the checker that judged the embedded model's training
    {"tfsd.serving.wire"},
    {"tfsd.serving.client", "tfsd.serving.server"},
    {"tfsd.serving.load_test", "tfsd.serving"},
    {"tfsd.cli"},
)
LIGHT = ("tfsd", "tfsd.cli", "tfsd.images", "tfsd.storage.model_folders", "tfsd.hub", "tfsd.specs", "tfsd.text")
LIGHT += ("tfsd.batch", "tfsd.samplers.plans")
ROOMS = {name for column in COLUMNS for name in column}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "tfsd" else ("tfsd", *parts)  # the folders `converters` and `serving` are packages of tfsd
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit_of(name: str) -> str:
    """Returns the room, or the module, in which a name is: the longest that has a place in COLUMNS."""
    parts = name.split(".")
    return next((unit for n in (3, 2) if (unit := ".".join(parts[:n])) in ROOMS), ".".join(parts[:2]))


def imports(path: Path) -> set[str]:
    """Returns the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "tfsd" else {node.module}
    return found


def column(unit: str) -> int:
    return next((i for i, units in enumerate(COLUMNS) if unit in units), -1)


def python(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_left(path):
    own = unit_of(name_of(path))
    if own in ("tfsd", "tfsd.__main__"):  # the names for users, and the command
        return
    assert column(own) >= 0, f"{own} has no column yet"
    for name in sorted(imports(path)):
        unit = unit_of(name)
        if unit.split(".")[0] != "tfsd" or unit in (own, "tfsd.__version__"):
            continue
        assert 0 <= column(unit) < column(own), f"{name_of(path)} must not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_imports_torch(path):
    assert not {name for name in imports(path) if name.split(".")[0] in ("torch", "diffusers", "transformers", "keras_cv")}


def test_light_modules_and_help_do_not_load_tensorflow():
    script = f"""
import contextlib, io, importlib, sys
for name in {LIGHT}:
    importlib.import_module(name)
import converters
from tfsd.cli import main
for arguments in (["--help"], ["generate", "--help"], ["--version"]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(arguments)
for arguments in (["tokens", "a red star"], ["models"], ["show", "setup.py"], ["x", "--steps", "0"], ["x", "--model", "none"]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(arguments)
print(sorted({{"tensorflow", "keras", "torch"}} & set(sys.modules)))
"""
    assert python(script).strip() == "[]"


def test_public_names_are_found_when_first_used():
    script = "import json, tfsd; print(json.dumps({name: str(getattr(tfsd, name)) for name in tfsd.__all__}))"
    found = json.loads(python(script))
    assert set(found) == {"__version__", "load", "text_to_image", "StableDiffusion", "Images", "Picture", "Cancelled"} | {
        "convert", "export_saved_model", "export_tflite", "image_to_image", "Client", "AsyncClient"
    }  # fmt: skip
    assert set(found) <= set(dir(tfsd))


def test_dir_has_public_names_and_modules_alone():
    others = {name for name in dir(tfsd) if not name.startswith("__")} - set(tfsd.__all__)
    assert others == {name for name in others if f"tfsd.{name}" in sys.modules}


def test_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tfsd.nothing  # noqa: B018


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel built from a copy of the sources, as `pip install .` builds it."""
    copy = tmp_path_factory.mktemp("sources")
    for name in ("tfsd", "converters", "serving"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (copy / "build/lib/tfsd").mkdir(parents=True)
    (copy / "build/lib/tfsd/removed.py").touch()  # a module of an older version, whose build is kept
    script = f"import os; os.chdir({str(copy)!r}); import setuptools.build_meta as b; b.build_wheel('.')"
    subprocess.run([sys.executable, "-c", script], cwd=copy, capture_output=True, text=True, check=True)
    return next(copy.glob("*.whl"))


def installed(path: Path) -> str:
    """Returns the place of a file of the repository in the wheel."""
    place = path.relative_to(ROOT).as_posix()
    return place if place.startswith("tfsd/") else f"tfsd/{place}"


def test_wheel_has_every_module_and_asset(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = {installed(path) for path in MODULES}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "tfsd/assets").rglob("*") if path.is_file()}
    assert {"tfsd/assets/bpe_simple_vocab_16e6.txt.gz", "tfsd/assets/LICENSE-CLIP"} <= wanted
    wanted |= {installed(path) for path in (ROOT / "serving/server/page").rglob("*") if path.is_file()}
    wanted |= {"tfsd/py.typed", "tfsd/converters/device/report.html"}
    assert wanted <= packed, sorted(wanted - packed)
    assert "tfsd/removed.py" not in packed
    assert {name.split("/")[0] for name in packed} == {"tfsd", f"tfsd-{tfsd.__version__}.dist-info"}


def test_wheel_says_what_users_need_to_know(wheel):
    packed = zipfile.ZipFile(wheel)
    info = f"tfsd-{tfsd.__version__}.dist-info/"
    assert "tfsd = tfsd.__main__:main" in packed.read(info + "entry_points.txt").decode()
    about = packed.read(info + "METADATA").decode()
    assert "License: Apache-2.0" in about or "License-Expression: Apache-2.0" in about
    assert any(name.startswith(info) and name.endswith("LICENSE") for name in packed.namelist())
    required = re.search(r"Requires-Python: (.+)", about)[1]
    assert set(required.split(",")) == {">=3.10", "<3.14"}
    versions = re.findall(r"Classifier: Programming Language :: Python :: (3\.\d+)", about)
    assert versions == ["3.10", "3.11", "3.12", "3.13"] and "Classifier: Typing :: Typed" in about
    assert "stable-diffusion" in re.search(r"Keywords: (.+)", about)[1]
    assert any(name.startswith(info) and name.endswith("LICENSE-CLIP") for name in packed.namelist())


def test_an_index_page_shows_no_picture_or_link_that_it_cannot_have(wheel):
    page = zipfile.ZipFile(wheel).read(f"tfsd-{tfsd.__version__}.dist-info/METADATA").decode().split("\n\n", 1)[1]
    assert "# tfsd: Stable Diffusion" in page and "![" not in page
    assert [target for target in re.findall(r"\]\(([^)]+)\)", page) if not target.startswith("https://")] == []
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(page) > 0.8 * len(readme) and "[Python API](docs/python.md)" in readme and "Python API" in page


def test_tests_name_no_function_twice():
    """The second would silently take the place of the first."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        names = [node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
        assert len(names) == len(set(names)), path


def test_readme_begins_with_the_two_commands_that_ci_runs():
    block = re.search(r"```bash\n(.*?)\n```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1].split("\n")
    assert [line.split(" && ")[0] for line in block] == ["pip install .", 'pip install ".[test]"']
    assert block[0].endswith("--out star.png") and block[1].endswith("pytest")
    assert "star.png" in (ROOT / ".ci/run").read_text(encoding="utf-8")
