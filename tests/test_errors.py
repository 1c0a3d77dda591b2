import ast
from pathlib import Path

import numpy as np
import pytest

from tfsd.errors import TfsdWarning, shown

ROOT = Path(__file__).parents[1]


LONG = ["x" * 10**6, b"x" * 10**6, ["x"] * 10**5, (0,) * 10**5, 10**5000, {i: i for i in range(999)}]


@pytest.mark.parametrize("value", LONG, ids=type)
def test_values_are_shown_in_one_short_line(value):
    assert len(shown(value)) <= 62 and "\n" not in shown(value)


def test_arrays_are_shown_without_their_numbers():
    assert shown(np.zeros((2, 77), "int32")) == "ndarray int32 [2, 77]"
    assert shown(np.float32(1.5)) == repr(np.float32(1.5))


def test_short_values_are_shown_whole():
    assert [shown(value) for value in ("a", 5, None, [1, "b"])] == ["'a'", "5", "None", "[1, 'b']"]


def test_every_warning_of_the_package_has_a_class_of_its_own():
    """The command line shows `TfsdWarning` and hides those of libraries: a plain `UserWarning` would reach nobody."""
    plain = []
    for path in (path for top in ("tfsd", "converters", "serving") for path in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
                category = [one for one in node.args[1:2] + [k.value for k in node.keywords if k.arg == "category"]]
                if not category or not ast.unparse(category[0]).startswith(("Tfsd", "Prompt", "Unknown", "Outdated")):
                    plain.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert plain == []


def test_warnings_of_prompts_are_of_the_package():
    from tfsd.text import PromptTruncationWarning

    assert issubclass(PromptTruncationWarning, TfsdWarning)
