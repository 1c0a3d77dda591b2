"""The Android library and app on a desktop's JVM, with stubs of LiteRT's and Android's API, and their errors beside Python's."""

import hashlib
import html.entities
import json
import random
import shutil
from xml.etree import ElementTree

import ftfy
import pytest
import toolchain

from tfsd.converters.device.recipes import GPU_PARTS
from tfsd.device import FORMATS, StepLoop, load_bundle_manifest
from tfsd.errors import CheckpointError
from tfsd.specs import CLIPSpec
from tfsd.text import Tokenizer
from tfsd.text.portable import write_tokenizer_data

pytestmark = pytest.mark.mobile
LIBRARY = toolchain.MOBILE / "android" / "tfsd" / "src"
APP = toolchain.MOBILE / "android" / "app" / "src" / "main"
APP_CODE = [APP / "kotlin" / "dev" / "tfsd" / "app" / name for name in ("Bundles.kt", "Generator.kt")]  # the rest is its screen
POOLS = (
    "aAΣσς.\u0301'\u00adʰ \n1\u0345",
    "eoaus\u0301\u0323\u0327\u0308\u0304\u0307\u0345\u1100\u1161\u11a8\uac00\u09c7\u09be\u212bα\u0f71\u0f72",
    "&#xX0123456789abcdefF;amplgtnotin <\n",
    "\x1b[0m;１［ｍfiﬁ“”’‘ŉǄ\r\n\u2028\ufeff\x85\x92ｶﾞ＆amp<",
    "a \t\x0b\x1c\x1f\x85\u00a0\u200b\u2003\u3000\x00",
    [
        "<|startoftext|>",
        "<|ſtartoftext|>",
        "<|endoftext|>",
        "<|ENDOFTEXT|>",
        "'s",
        "'ſ",
        "'S",
        "'ll",
        "'re",
        "'",
        "ſ",
        "a",
        "7",
        " ",
        "!",
    ],
)
TEXT = ("length", "start_token", "end_token", "pad_token")
LATENTS = {"dtype": "float32", "shape": [1, 2, 2, 4]}


def integers(*shape):
    return {"dtype": "int32", "shape": list(shape)}


def floats(*shape):
    return {"dtype": "float32", "shape": list(shape)}


def signatures():
    """Returns the signatures of a bundle, as small as can be."""
    row = {"row": floats(12), "timestep_features": floats(1, 320), "count": integers(1), "init_scale": floats(1)}
    step = {"latents": LATENTS, **{f"history{i}": LATENTS for i in range(4)}, "context": floats(2, 77, 2)}
    step |= {"timestep_features": floats(1, 320), "row": floats(12), "noise": LATENTS, "guidance_scale": floats(1)}
    plan = {name: integers(1) for name in ("sampler", "num_steps", "step")}
    draw = {name: integers(1) for name in ("seed", "index", "stream")} | {"scale": floats(1)}
    sampling = {"plan": {"inputs": plan, "outputs": row}, "noise": {"inputs": draw, "outputs": {"noise": LATENTS}}}
    return {
        "sampling": sampling,
        "text_encoder": {"encode": {"inputs": {"tokens": integers(2, 77)}, "outputs": {"context": floats(2, 77, 2)}}},
        "denoiser": {"step": {"inputs": step, "outputs": {"latents": LATENTS, "history": LATENTS}}},
        "decoder": {"decode": {"inputs": {"latents": LATENTS}, "outputs": {"colours": integers(8, 8)}}},
    }


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    return write_tokenizer_data(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, tokenizer_file):
    """A bundle with a manifest as exports write it, and model files that hold nothing."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    parts = {}
    for part, own in signatures().items():
        (folder / f"{part}.tflite").write_bytes(f"no model: {part}".encode())
        memory = 1_900_000_000 if part == "denoiser" else 1000
        accelerators = ["gpu", "cpu"] if part in GPU_PARTS else ["cpu"]
        parts[part] = {"file": f"{part}.tflite", "memory": memory, "accelerators": accelerators, "signatures": own}
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    text = {"file": "tokenizer.json", "length": 77, "start_token": 49406, "end_token": 49407, "pad_token": 49407, "ftfy": True}
    manifest = {
        "format": FORMATS[-1],
        "kind": "device",
        "name": "toy",
        "tfsd": "0.1.0",
        "tensorflow": "2.21.0",
        "identity": {"model": "toy"},
        "quantize": "none",
        "size": [8, 8],
        "latents": [2, 2, 4],
        "tokenizer": text,
        "samplers": ["ddim", "euler"],
        "sampler_aliases": {"ddim": "ddim", "euler": "euler", "k_euler": "euler", "dpm++ 2m": "dpmpp_2m"},
        "max_steps": 10,
        "max_index": 1000,
        "seed_period": 2147483646,
        "defaults": {"num_steps": 4, "guidance_scale": 3.0, "sampler": "euler"},
        "parts": parts,
        "files": {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def changed(**changes):
    """Returns what damages a manifest: entries are replaced, those that become None are taken away."""

    def damage(folder):
        path = folder / "manifest.json"
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))

    return damage


def rewritten(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


DAMAGES = {
    "no folder": lambda folder: [path.unlink() for path in folder.iterdir()],
    "truncated model": rewritten("denoiser.tflite", lambda data: data[:-3]),
    "model of another hash": rewritten("denoiser.tflite", lambda data: data[:-1] + b"?"),
    "missing model": lambda folder: (folder / "decoder.tflite").unlink(),
    "missing tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "manifest of another kind": changed(kind="model"),
    "manifest without keys": changed(parts=None, identity=None),
    "manifest of another format": changed(format=FORMATS[-1] + 1),
    "manifest of a long format": changed(format="x" * 50),
    "no files": changed(files={}),
    "list of files": changed(files=["denoiser.tflite"]),
    "file outside": changed(files={"../secret": {"sha256": "", "bytes": 1}}),
    "file of the whole disk": changed(files={"/etc/passwd": {"sha256": "", "bytes": 1}}),
    "file without hash": changed(files={"denoiser.tflite": {"bytes": 1}}),
    "part without file": changed(parts={}),
}
ARGUMENTS = {
    "unknown sampler": {"sampler": "dpm3"},
    "sampler of other models": {"sampler": "ddpm"},
    "alias of a sampler of other models": {"sampler": "DPM++ 2M"},
    "too many steps": {"num_steps": 11},
    "no steps": {"num_steps": 0},
    "negative guidance": {"guidance_scale": -0.5},
    "guidance that is none": {"guidance_scale": float("nan")},
    "endless guidance": {"guidance_scale": float("inf")},
    "too much guidance": {"guidance_scale": 100.5},
    "index too large": {"index": 1001},
    "negative index": {"index": -1},
    "prompt of 10 MB": {"prompt": "a" * 10_000_000},
    "prompt of many bytes": {"prompt": "\U0001f600" * 20_000},
    "negative prompt of many bytes": {"negative_prompt": "é" * 40_000},
}
NO_JSON = {  # Python says in more words why
    "no manifest but text": lambda data: b"no JSON",
    "manifest that is cut off": lambda data: data[:-1],
    "manifest that is no UTF-8": lambda data: b'{"kind": "\xff"}',
    "manifest that is a list": lambda data: b"[1]",
    "manifest that is nested too deep": lambda data: b"[" * 100_000,
}
FIELDS = {
    "size": {"size": [8]},
    "latents": {"latents": [2, -2, 4]},
    "defaults.num_steps": {"defaults": {}},
    "max_steps": {"max_steps": "10"},
    "seed_period": {"seed_period": 0},
    "samplers": {"samplers": [1]},
    "sampler_aliases": {"sampler_aliases": "euler"},
    "tokenizer.ftfy": {"tokenizer": {"file": "tokenizer.json"} | dict.fromkeys(TEXT, 1)},
    "tokenizer.file": {"tokenizer": {"file": "../secret"}},
}


@pytest.fixture(scope="module")
def damaged(bundle, tmp_path_factory):
    """Copies of the bundle by name, each with its damage."""
    work = tmp_path_factory.mktemp("damaged")
    others = {name: rewritten("manifest.json", change) for name, change in NO_JSON.items()}
    others |= {name: changed(**changes) for name, changes in FIELDS.items()}
    for name, damage in (DAMAGES | others).items():
        shutil.copytree(bundle, work / name)
        damage(work / name)
    return {folder.name: folder for folder in work.iterdir()}


@pytest.fixture(scope="module")
def printed(bundle, damaged, tokenizer_file, tmp_path_factory):
    """What Kotlin's tests print: results by name, and the texts of errors by name."""
    work = tmp_path_factory.mktemp("kotlin")
    asked = [{"name": name, "folder": str(bundle), "prompt": "a"} | _texts(values) for name, values in ARGUMENTS.items()]
    asked += [{"name": name, "folder": str(folder)} for name, folder in damaged.items()]
    (work / "hard.json").write_text(json.dumps(hard_prompts()))
    (work / "errors.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    coroutines = next(toolchain.kotlin_jars().glob("kotlin-jupyter-kernel-*.jar"))
    classes = toolchain.compile_kotlin([*toolchain.sources(LIBRARY), *APP_CODE], work / "classes", [coroutines])
    given = [tokenizer_file, toolchain.MOBILE, bundle, work]
    done = toolchain.ended(toolchain.java("dev.tfsd.MainKt", given, [classes, coroutines]))
    return done.stdout + done.stderr


def hard_prompts():
    """Returns prompts of what is seldom typed, with Python's ids: as vectors have them, but that nothing is guessed."""
    source, texts = random.Random(0), []
    for pool in POOLS:
        texts += ["".join(source.choices(pool, k=source.randint(0, 30))) for _ in range(400)]
    letters = [chr(code) for code in source.sample(range(0xE000), 2000) if not 0xD800 <= code < 0xE000]
    texts += [f"{letter}aA{letter}Σ e{letter} {letter}Σ{letter}" for letter in letters]
    names = [name for key in source.sample(sorted(html.entities.html5), 300) for name in (key, key.upper(), key + "x", key[:-1])]
    numbers = [*range(0x180), 0xD800, 0xDFFF, 0xFFFE, 0x1FFFF, 0x10FFFF, 0x110000, 10**7, 10**8, 2**31, 2**32, 2**64, 10**40]
    names += [form.format(number) for form in ("#{0};", "#{0}", "#x{0:x};", "#X{0:X}z", "#000000000{0};") for number in numbers]
    texts += [text for name in names for text in (f"&{name}", f"&amp;{name} &{name}", f"a\n&{name}<b>\n&{name}")]
    plain = Tokenizer(CLIPSpec(ftfy=False))
    ids = [(plain.encode(ftfy.fix_text(text, fix_encoding=False)), plain.encode(text)) for text in texts]
    return [{"text": text, "ids": a, "ids_without_ftfy": b, "guessed": False} for text, (a, b) in zip(texts, ids)]


def _texts(arguments):
    return {name: value if json.dumps(value) not in ("NaN", "Infinity") else str(value) for name, value in arguments.items()}


def in_kotlin(printed, name):
    found = [line.removeprefix(f"error {name}: ") for line in printed.splitlines() if line.startswith(f"error {name}: ")]
    assert len(found) == 1, printed[-3000:]
    return found[0]


def test_library_passes_its_tests_on_a_desktop(printed):
    failed = [line for line in printed.splitlines() if line.startswith("FAIL ")]
    assert not failed, "\n".join(failed)
    assert printed.count("\nok ") > 20, printed[-3000:]


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_bundles_get_the_same_errors_as_in_python(name, damaged, printed):
    with pytest.raises(CheckpointError) as error:
        load_bundle_manifest(damaged[name])
    assert str(error.value) == in_kotlin(printed, name)


@pytest.mark.parametrize("name", NO_JSON)
def test_manifests_that_are_no_json_are_refused(name, damaged, printed):
    assert in_kotlin(printed, name) == f"{damaged[name]}/manifest.json is damaged: it is not a JSON object."


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_values_in_manifests_are_named_as_in_python(name, damaged, printed):
    with pytest.raises(CheckpointError) as error:
        load_bundle_manifest(damaged[name])
    assert str(error.value) == in_kotlin(printed, name)
    assert str(error.value) == f"{damaged[name]}/manifest.json is damaged: {name} is missing or not what it should be."


class Loop(StepLoop):
    def part(self, name):
        raise AssertionError(f"{name} is opened")


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_get_the_same_errors_as_in_python(name, bundle, printed):
    with pytest.raises(ValueError) as error:
        Loop(load_bundle_manifest(bundle)).text_to_image(**{"prompt": "a", "seed": 1} | ARGUMENTS[name])
    assert str(error.value).replace("prompt[0]", "prompt") == in_kotlin(printed, name)  # Python takes lists of prompts, too


def test_only_the_folder_android_needs_android():
    core = [path for path in toolchain.sources(toolchain.KOTLIN) if path.parent.name != "android"]
    imports = [line for path in core for line in path.read_text().splitlines() if line.startswith("import ")]
    assert imports and not [line for line in imports if not line.startswith(("import java.", "import kotlin."))]


def test_app_asks_for_no_permission_and_lets_no_library_use_the_network():
    asked = []
    for folder in (APP, LIBRARY / "main"):
        asked += ElementTree.parse(folder / "AndroidManifest.xml").findall("uses-permission")
    (network,) = [{name.split("}")[1]: value for name, value in one.attrib.items()} for one in asked]
    assert network == {"name": "android.permission.INTERNET", "node": "remove"}
