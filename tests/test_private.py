"""Private names of other packages are used through one table, and a release that changes them is named in the error."""

import ast
import re
import sys
from pathlib import Path

import pytest

from tfsd.runtime.private import PRIVATE, Private, VersionError, private

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for top in ("tfsd", "converters", "serving") for path in (ROOT / top).rglob("*.py"))
# Modules of which their packages promise nothing; what is documented of these packages may be imported anywhere.
UNPROMISED = re.compile(
    r"tensorflow\.(python|lite\.python)|keras\.src|ai_edge_quantizer\.(?!quantizer$)|ai_edge_litert\.schema"
    r"|huggingface_hub\.file_download"
)


@pytest.mark.parametrize("name", PRIVATE)
def test_every_private_name_is_there_as_assumed(name):
    assert private(name) is not None


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A module as another release might have it, in place of a package that is installed."""
    (tmp_path / "stand_in_of_keras.py").write_text("def call(image, text): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda name, *parameters: monkeypatch.setitem(
        PRIVATE, f"stand_in_of_keras:{name}", Private("keras", "1.2.3", parameters)
    )
    sys.modules.pop("stand_in_of_keras", None)


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("gone", (), "no gone in stand_in_of_keras"),
        ("call", ("image", "size"), "no parameter size of call in stand_in_of_keras"),
        ("call.deeper", (), "no call.deeper in stand_in_of_keras"),
    ],
)
def test_a_release_that_changed_a_name_is_named_beside_the_tested_one(name, parameters, words, stand_in):
    import keras

    stand_in(name, *parameters)
    with pytest.raises(VersionError) as error:
        private(f"stand_in_of_keras:{name}")
    expected = f'keras {keras.__version__} has {words}; this package was tested with keras 1.2.3. pip install "keras==1.2.3"'
    assert str(error.value) == expected


def test_a_package_that_is_not_installed_is_pythons_error(monkeypatch):
    monkeypatch.setitem(PRIVATE, "no_such_package:name", Private("no-such-package", "1.0"))
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        private("no_such_package:name")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_goes_round_the_table(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            assert not UNPROMISED.match(name), f"{name} is private: use tfsd.runtime.private"


def test_every_package_with_private_names_has_an_upper_bound():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for package in {one.package for one in PRIVATE.values()} | {"keras", "numpy"}:
        assert re.search(rf'"{package}>=[\d.]+,<[\d.]+"', setup), package
