"""What can be said of the apps' sources without their compilers: texts, permissions, names. With Swift, its tests run, too."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tfsd import device

MOBILE = Path(__file__).parents[2] / "mobile"
MESSAGES = json.loads((MOBILE / "messages.json").read_text(encoding="utf-8"))
SWIFT = MOBILE / "ios" / "Sources" / "TFSD"
SOURCES = {
    ".swift",
    ".kt",
    ".kts",
    ".java",
    ".c",
    ".h",
    ".xml",
    ".plist",
    ".entitlements",
    ".yml",
    ".toml",
    ".properties",
    ".pro",
}
KOTLIN_MESSAGES = MOBILE / "android/tfsd/src/main/kotlin/dev/tfsd/Messages.kt"
TABLES = {"swift": (SWIFT / "Messages.swift", r":\s*"), "kotlin": (KOTLIN_MESSAGES, r" to\s*")}
NETWORK = re.compile(
    r"URLSession|URLRequest|CFNetwork|NWConnection|import Network\b|NSAppTransportSecurity|HttpURLConnection|java\.net\.|okhttp"
    r"|sys/socket\.h|ACCESS_NETWORK_STATE|android\.permission\.INTERNET"
)
REMOVED = 'android:name="android.permission.INTERNET" tools:node="remove"'  # takes away what a library might ask for


def sources():
    return [path for path in MOBILE.rglob("*") if path.suffix in SOURCES and "build" not in path.parts]


@pytest.mark.parametrize("language", TABLES)
def test_both_apps_have_the_table_of_messages(language):
    path, between = TABLES[language]
    found = dict(re.findall(rf'"(\w+)"{between}"((?:[^"\\]|\\.)*)"', path.read_text(encoding="utf-8")))
    assert {key: text.replace('\\"', '"').replace("\\$", "$") for key, text in found.items()} == MESSAGES


def test_every_error_in_swift_is_in_the_table_with_all_its_places():
    text = "".join(path.read_text(encoding="utf-8") for path in SWIFT.glob("*.swift"))
    used = set(re.findall(r'TFSDError\(\s*"(\w+)"', text))
    assert used == set(MESSAGES) - {"surrogate"}  # a String of Swift holds no halves of pairs
    written = re.findall(r'TFSDError\(\s*"(\w+)",\s*\[((?:[^\]\[]|\[[^\]\[]*\])*)\]\s*\)', text)
    assert len(written) > 20
    for key, values in written:
        assert set(re.findall(r'"(\w+)": ', values)) == set(re.findall(r"\{(\w+)\}", MESSAGES[key])), key


def test_swift_asks_a_manifest_for_what_python_asks_for():
    keys = re.search(r"static let keys = \[(.*?)\]", (SWIFT / "Bundle.swift").read_text(encoding="utf-8"), re.S)[1]
    assert set(re.findall(r'"(\w+)"', keys)) == device._NEEDED
    known = re.search(r"static let formats = (\[.*?\])", (SWIFT / "Bundle.swift").read_text(encoding="utf-8"))[1]
    assert json.loads(known) == list(device.FORMATS)


def test_apps_do_not_use_the_network():
    found = {}
    for path in sources():
        text = path.read_text(encoding="utf-8").replace(REMOVED, "")
        if words := NETWORK.findall(text):
            found[str(path)] = words
    assert not found and len(sources()) > 30


@pytest.mark.parametrize("readme", sorted(MOBILE.rglob("README.md")), ids=lambda path: str(path.relative_to(MOBILE)))
def test_files_that_documents_name_are_there(readme):
    named = set(re.findall(r"`([\w./-]+\.[a-z]{1,12})`", readme.read_text(encoding="utf-8")))
    named = {name for name in named if "." + name.rpartition(".")[2] in SOURCES | {".py", ".json", ".md"}}
    made = {"manifest.json", "tokenizer.json", "report.json"}  # of a bundle
    there = [f"/{path.relative_to(MOBILE.parent)}" for path in MOBILE.rglob("*")]
    missing = [name for name in named - made if not any(path.endswith(f"/{name}") for path in there)]
    assert not [name for name in missing if not any((base / name).exists() for base in (readme.parent, MOBILE.parent))]


def test_the_files_that_swift_and_kotlin_share_have_the_same_names():
    kotlin = {path.stem for path in KOTLIN_MESSAGES.parent.glob("*.kt")}
    swift = {path.stem for path in SWIFT.glob("*.swift")}
    assert {"Bundle", "Cleaning", "Messages", "Picture", "Runtime", "StableDiffusion", "Tokenizer"} <= kotlin & swift


@pytest.mark.mobile
def test_swifts_own_tests_pass(tiny_bundle, tmp_path):
    """On Linux with stand-ins for Apple's frameworks. No Python package brings Swift: without it, nothing can be said."""
    swift = os.environ.get("TFSD_SWIFT") or shutil.which("swift")
    if swift is None:
        pytest.skip("Swift is not installed; Debian 13 has it as swiftlang. TFSD_SWIFT may name its program.")
    command = [swift, "test", "--scratch-path", tmp_path / "build", "-c", "release", "-Xswiftc", "-enable-testing"]
    done = subprocess.run(
        command,
        cwd=MOBILE / "ios",
        env=os.environ | {"TFSD_BUNDLE": str(tiny_bundle)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "warning:" not in done.stdout
    assert re.search(r"Executed (\d+) tests, with 0 failures", done.stdout)
