"""Errors show what a caller passed, on one short line; warnings are known as the package's."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from tfsd.arguments.checks import one_each, per_prompt
from tfsd.errors import TfsdWarning, shown

ROOT = Path(__file__).parents[1]


class Strange:
    """A value whose own text has many lines and controls a terminal."""

    def __repr__(self):
        return "<Strange\n\x1b[2J" + "x" * 10**6


class Broken:
    dtype = None

    @property
    def shape(self):
        raise RuntimeError

    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros((1, 77), "int32"), "ndarray int32 [1, 77]"),
        (np.zeros(10**6), "ndarray float64 [1000000]"),
        ([np.zeros((2, 3), "uint8"), 1], "[ndarray uint8 [2, 3], 1]"),
        ({"tokens": np.zeros(3)}, "{'tokens': ndarray float64 [3]}"),
        (np.array("a cat"), "'a cat'"),
        (np.str_("a cat"), "'a cat'"),
        (np.float32(0.1), "0.1"),
        (np.int64(5), "5"),
        (list(range(77)), "[0, 1, 2, 3, 4, 5, ...]"),
        ("a cat", "'a cat'"),
        (Path("a/b"), "'a/b'"),
        (10**5000, "a number of 16610 bits"),
        (None, "None"),
        (Broken(), "a Broken"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_are_shown_without_their_numbers(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    "value", ["x" * 10**6, b"x" * 10**6, ["y" * 1000] * 30, (0,) * 10**5, Strange(), {i: "z" * 99 for i in range(99)}]
)
def test_what_is_shown_is_short_and_on_one_line(value):
    text = shown(value)
    assert len(text) <= 62 and text.isprintable() and "..." in text


def test_tensors_are_shown_as_dtype_and_shape():
    import tensorflow as tf

    assert shown(tf.zeros((2, 3))) == "EagerTensor float32 [2, 3]"


def test_errors_show_no_value_uncut():
    """`{value!r}` in a message has no limit; names that the package chose itself, and slices, are the exception."""
    own = {"__name__", "hint", "key", "known[close[0]]", "command", "text[:_SHOWN_LETTERS]", "spec.spacing", "rule.name"}
    own |= {"spec.prediction", "sampler", "rule.path", "signature", "self.address", "self.model", "shown"}
    found = []
    for path in sorted(ROOT.glob("*/**/*.py")):
        if path.relative_to(ROOT).parts[0] not in ("tfsd", "converters", "serving"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FormattedValue) and node.conversion == ord("r"):
                value = ast.unparse(node.value)
                found += [] if value in own or value.endswith("0]") else [f"{path.relative_to(ROOT)}:{node.lineno}: {value}"]
    assert not found


def test_every_warning_of_the_package_has_a_class_of_its_own():
    """The command line shows `TfsdWarning` and hides those of libraries: a plain `UserWarning` would reach nobody."""
    plain = []
    for path in (path for top in ("tfsd", "converters", "serving") for path in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if path.name != "errors.py" and isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "warn"):
                category = [one for one in node.args[1:2] + [k.value for k in node.keywords if k.arg == "category"]]
                if not category or not ast.unparse(category[0]).startswith(("Tfsd", "Prompt", "Unknown", "Outdated")):
                    plain.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert plain == []


def test_warnings_of_prompts_are_of_the_package():
    from tfsd.text import PromptTruncationWarning

    assert issubclass(PromptTruncationWarning, TfsdWarning)


# -- texts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["a cat", np.array("a cat"), np.str_("a cat"), ["a cat"], ("a cat",), np.array(["a cat"])])
def test_a_text_is_a_prompt_in_any_form(prompt):
    for texts in (per_prompt(prompt, 2), one_each("negative_prompt", prompt, str, 1) * 2):
        assert texts == ["a cat", "a cat"] and all(type(text) is str for text in texts)


@pytest.mark.parametrize("tokens", [np.zeros((1, 77), "int32"), np.zeros(77, "int64"), np.array(3)])
def test_tokens_are_refused_without_printing_them(tokens):
    for name, call in (
        ("prompt", lambda: per_prompt(tokens, 1)),
        ("negative_prompt", lambda: one_each("negative_prompt", tokens, str, 1)),
    ):
        with pytest.raises(
            TypeError, match=rf"{name} must be a text or a list of texts; got {re.escape(shown(tokens))}\. Pass the"
        ):
            call()
