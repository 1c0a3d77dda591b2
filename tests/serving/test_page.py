import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest
from browser import PAGE
from patience import LONG

from tfsd.arguments.document import described_arguments
from tfsd.samplers.plans import SAMPLERS

VOID = {"meta", "link", "input", "img", "br", "hr"}
SCRIPTS = sorted(PAGE.glob("*.js"))
CONTROLS = {"input", "textarea", "select", "progress"}


class Document(HTMLParser):
    """The elements of an HTML file, with what is around and in them; fails where tags are not closed in their order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "attributes": dict(attributes), "in": [one["tag"] for one in self.open], "text": ""}
        assert len(dict(attributes)) == len(attributes), f"an attribute twice: {attributes}"
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1]["tag"] == tag, f"</{tag}> closes {self.open[-1:]}, line {self.getpos()[0]}"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, *tags):
        return [one for one in self.elements if one["tag"] in tags]


@pytest.fixture(scope="module")
def document():
    return Document((PAGE / "index.html").read_text(encoding="utf-8"))


def test_html_is_well_formed_and_ids_are_unique(document):
    ids = [one["attributes"]["id"] for one in document.elements if "id" in one["attributes"]]
    assert len(ids) > 30 and len(ids) == len(set(ids))


def test_every_control_has_a_label_and_every_button_a_name(document):
    labels = {one["attributes"]["for"]: one["text"].strip() for one in document.all("label")}
    for one in document.all(*CONTROLS):
        attributes = one["attributes"]
        assert labels.get(attributes["id"]) or attributes.get("aria-label"), attributes
    for one in document.all("button", "a"):
        assert one["text"].strip() or one["attributes"].get("aria-label"), one
    ids = {one["attributes"].get("id") for one in document.elements}
    for one in document.elements:
        for name in ("for", "aria-labelledby", "aria-describedby"):
            assert one["attributes"].get(name, "prompt") in ids


def test_nothing_is_inline_so_that_the_strict_policy_holds(document):
    assert not document.all("style")
    for one in document.all("script"):
        assert one["attributes"]["src"] and not one["text"].strip()
    for one in document.elements:
        assert not {name for name in one["attributes"] if name == "style" or name.startswith("on")}


def test_files_refer_to_local_files_alone(document):
    used = {one["attributes"].get(name) for one in document.elements for name in ("src", "href") if name in one["attributes"]}
    for path in SCRIPTS:
        used |= set(re.findall(r"""(?:from|import)\s*\(?\s*["']\./([^"']+)["']""", path.read_text(encoding="utf-8")))
    assert used == {path.name for path in PAGE.iterdir()} - {"index.html"}
    for path in (*SCRIPTS, PAGE / "style.css"):
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"https?://[^\s\"'`]+", text)) <= {"http://host:8501."}  # an example in a message
        assert not re.search(r"@import|url\(|eval\(|innerHTML|document\.write", text)


def test_scripts_parse():
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed; `pytest -m browser` runs the scripts.")
    for path in SCRIPTS:
        command = [node, "--check", "--input-type=module"]
        done = subprocess.run(command, input=path.read_bytes(), capture_output=True, timeout=LONG)
        assert done.returncode == 0, done.stderr.decode()


def test_elements_that_scripts_ask_for_are_there(document):
    ids = {one["attributes"].get("id") for one in document.elements}
    asked = {name for path in SCRIPTS for name in re.findall(r"\$\(\"([^\"]+)\"\)", path.read_text(encoding="utf-8"))}
    assert len(asked) > 20 and asked <= ids


def test_samplers_offered_for_tf_serving_are_those_there_are():
    """TF Serving does not tell which samplers an export knows."""
    assert "const SAMPLERS = ARGUMENTS.sampler.choices;" in (PAGE / "models.js").read_text(encoding="utf-8")
    assert described_arguments()["sampler"]["choices"] == list(SAMPLERS)


def luminance(colour: str) -> float:
    """Source: WCAG 2.2, relative luminance."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize(
    "front, back, least",
    [
        *((front, back, 4.5) for front in ("text", "faint") for back in ("ground", "surface", "sunken")),
        *((f"{kind}", f"{kind}-ground", 4.5) for kind in ("error", "notice")),
        *(("on-accent", back, 4.5) for back in ("accent", "accent-strong")),
        *(("edge", back, 3.0) for back in ("ground", "surface")),
        *(("accent", back, 3.0) for back in ("ground", "surface", "line")),
    ],
)
def test_colours_have_the_contrast_that_wcag_aa_asks_for(front, back, least, mode):
    blocks = re.findall(r":root \{(.*?)\}", (PAGE / "style.css").read_text(encoding="utf-8"), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", blocks[["light", "dark"].index(mode)]))
    high, low = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
    assert (high + 0.05) / (low + 0.05) >= least


def test_addresses_of_the_page_stay_below_its_own_folder(document):
    """So that it works behind a proxy, at a path of its own."""
    for one in document.elements:
        for name in ("src", "href"):
            parts = urlsplit(one["attributes"].get(name, ""))
            assert not (parts.scheme or parts.netloc or parts.path.startswith("/"))
    for path in SCRIPTS:
        assert not re.search(r"""["'`]/v1/|["'`]/config""", path.read_text(encoding="utf-8"))
