"""Warnings of the package reach a person; those of its libraries do not."""

import warnings

import pytest
from command_line import one_line

from tfsd.cli import main
from tfsd.errors import TfsdWarning


@pytest.fixture
def warning_command(monkeypatch):
    """Lets `tfsd models` do what a test says."""

    def replace(function):
        monkeypatch.setattr("tfsd.storage.model_folders.list_models", lambda: function() or [])

    return replace


def test_warning_of_the_package_is_one_line_without_a_path(warning_command, run):
    warning_command(lambda: warnings.warn("the sampler\nis pndm", TfsdWarning, stacklevel=1))
    status, _, err = run("models")
    assert (status, err) == (0, "tfsd: warning: the sampler is pndm\n")


def test_warning_is_shown_once_and_others_as_well(warning_command, run):
    warning_command(lambda: [warnings.warn(text, TfsdWarning, stacklevel=1) for text in ("one", "one", "two", "one")] and None)
    assert run("models")[2] == "tfsd: warning: one\ntfsd: warning: two\n"
    assert run("models")[2] == "tfsd: warning: one\ntfsd: warning: two\n"


@pytest.mark.parametrize("category", [UserWarning, DeprecationWarning, FutureWarning, RuntimeWarning])
def test_warnings_of_libraries_are_hidden_unless_debugging(category, warning_command, run):
    def theirs():
        warnings.warn("old", category, stacklevel=1)
        warnings.simplefilter("always")  # as some libraries do when they are imported
        warnings.warn("older", category, stacklevel=1)

    warning_command(theirs)
    assert run("models")[2] == ""
    with pytest.warns(category):
        main(["models", "--debug"])


def test_warning_names_the_option_as_it_was_typed(warning_command, run):
    warning_command(lambda: warnings.warn("json has no meaning here", TfsdWarning, stacklevel=1))
    assert "warning: --json has no meaning here" in run("models", "--json")[2]


def test_cut_negative_prompt_is_told_by_the_name_of_its_option(place, run):
    long = "a red star, " * 30
    for name in ("--negative", "--negative-prompt"):
        status, _, err = run("a star", name, long, "--model", "toy", "--no-jit", "--steps", "1", "--out", "x.png")
        assert status == 0 and one_line(err) and err.startswith(f"tfsd: warning: {name} has 122 tokens")


def test_words_that_the_model_never_learned_are_named_once_for_all_pictures(place, run):
    argv = ("a dog", "a red zeppelin", "--model", "toy", "--no-jit", "--steps", "1", "--batch", "1", "--out", "{n}.png")
    status, _, err = run(*argv)
    assert status == 0 and one_line(err)
    assert err.startswith("tfsd: warning: prompt has words that the model never learned: 'dog', 'zeppelin'.")
