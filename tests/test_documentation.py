"""The pages of the documentation: their links lead somewhere, and the command takes what they show."""

import argparse
import ast
import re
import shlex
from pathlib import Path

import pytest

import tfsd
from tfsd.cli import _parsed, build_parser
from tfsd.cli.parsing import UsageError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), ROOT / "mobile/README.md", ROOT / "serving/tf_serving/README.md"]
NOT_MEANT = ("tfsd COMMAND", "tfsd list", "tfsd help", "tfsd --help")  # a placeholder, a prompt that gets a question, and help
LINKS = [(page, target) for page in PAGES for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"(?m)^#+ (.+)", re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "target"), LINKS, ids=[f"{page.relative_to(ROOT)}-{target}" for page, target in LINKS])
def test_links_lead_somewhere(page, target):
    if "://" in target:
        return
    path, _, anchor = target.partition("#")
    linked = (page.parent / path).resolve() if path else page
    assert linked.is_file()
    assert not anchor or anchor in anchors(linked)


def shown_commands(page: Path) -> tuple[list[str], list[str]]:
    """The commands of tfsd in a page's blocks, and those in its text, which may leave arguments out."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"(?ms)^```bash\n(.*?)^```", text))
    inline = re.findall(r"(?<!`)`([^`\n]*)`(?!`)", re.sub(r"(?ms)^```.*?^```", "", text))

    def commands(lines):
        parts = [part.strip() for line in lines for part in re.split(r" && | \\?\| ", line)]
        parts = [re.sub(r"^[A-Z_]+=\w+ |(?<= -) > .*$", "", part) for part in parts]
        return [part for part in parts if part.startswith("tfsd ") and not part.startswith(NOT_MEANT)]

    return commands(blocks.splitlines()), commands(inline)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_command_takes_what_a_page_shows(page):
    whole, abbreviated = shown_commands(page)
    for command in (*whole, *abbreviated):
        try:
            assert _parsed(shlex.split(command, comments=True)[1:]).run, command
        except UsageError as error:
            assert command in abbreviated and ("required" in str(error) or "missing" in str(error)), f"{command}: {error}"


def test_commands_are_found_in_blocks_and_in_text():
    found = {page.name: tuple(map(len, shown_commands(page))) for page in PAGES if page.parent != ROOT / "mobile"}
    assert found["serving.md"][0] >= 3 and found["phones.md"][0] >= 2 and found["command-line.md"][1] >= 18


def options_of(parser: argparse.ArgumentParser):
    """Yields the options of a parser and of those below it."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from options_of(below)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_that_a_page_names_exist(page):
    """Those that stand in the text by themselves, such as `--allow-empty`, but for TensorFlow Serving's."""
    known = set(options_of(build_parser()))
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    for option in re.findall(r"`(--[a-z_-]+)[^`]*`", text):
        if page.parent == ROOT / "docs" and "_" not in option:
            assert option in known


@pytest.mark.parametrize("page", PAGES[:-2], ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page):
    """Those that begin with a folder of the repository, such as `tfsd/pipeline.py`."""
    named = re.findall(r"`((?:tfsd|converters|serving|mobile|tests|docs|[.]ci)/[\w./-]*)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_that_a_page_shows_imports_what_there_is(page):
    for block in re.findall(r"(?ms)^```python\n(.*?)^```", page.read_text(encoding="utf-8")):
        imported = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom) and node.module == "tfsd"]
        assert {alias.name for node in imported for alias in node.names} <= set(tfsd.__all__), block
