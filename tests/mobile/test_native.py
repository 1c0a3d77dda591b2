"""The native runtime of the apps' desktop runner on LiteRT's C library: the same numbers as LiteRT's Python gives."""

import ctypes
import re
import sys

import numpy as np
import pytest
import toolchain

from tfsd.device import HISTORY, DeviceBundle, fitted

pytestmark = pytest.mark.mobile
NATIVE = toolchain.MOBILE / "native"
SOURCES = [NATIVE / "run_signature.c", NATIVE / "runtime.c"]
PARTS = {"plan": "sampling", "noise": "sampling", "encode": "text_encoder", "step": "denoiser", "decode": "decoder"}
CLOSE = (
    1e-5  # what is not exact: matrix products, whose order of additions is XNNPACK's to choose, as it is built and at run time
)


@pytest.fixture(scope="module")
def device(tiny_bundle):
    return DeviceBundle(tiny_bundle, threads=1)


def build(folder, flags=()):
    library = toolchain.litert()
    return toolchain.compile_c(SOURCES, folder / "run_signature", [library, f"-Wl,-rpath,{library.parent}", *flags])


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build(tmp_path_factory.mktemp("native"))


def command(program, device, part, signature, given, folder):
    """Returns the command that runs a signature on arrays, which it writes to files."""
    inputs = []
    for name, value in given.items():
        np.ascontiguousarray(value).tofile(folder / f"given_{name}")
        inputs.append(f"{name}={folder / f'given_{name}'}")
    model = device.folder / device.manifest["parts"][part]["file"]
    return [str(program), str(model), signature, *inputs, str(folder)]


def run_native(program, device, part, signature, given, folder):
    """Returns the outputs of a signature as the native program gives them."""
    toolchain.run(command(program, device, part, signature, given, folder))
    outputs = device.manifest["parts"][part]["signatures"][signature]["outputs"]
    return {name: np.fromfile(folder / f"{name}.bin", one["dtype"]).reshape(one["shape"]) for name, one in outputs.items()}


def arrays(device, part, signature, **given):
    """Returns values as arrays of the shapes and types that a signature takes."""
    return fitted(given, device.manifest["parts"][part]["signatures"][signature]["inputs"])


@pytest.fixture(scope="module")
def inputs(device):
    """Inputs of each signature like those in the middle of a generation: none like another, none without effect."""
    random = np.random.default_rng(5)
    plan = {"sampler": device.manifest["samplers"].index("pndm"), "num_steps": 9, "step": 3}
    latents = [random.normal(size=[1, *device.manifest["latents"]]) for _ in range(2 + HISTORY)]
    tokens = np.stack(device.tokenizer(["", "a red star above a blue house"]))
    with device.part("sampling") as run:
        features = run("plan", **plan)["timestep_features"]
    with device.part("text_encoder") as run:
        context = run("encode", tokens=tokens)["context"]
    step = {"latents": latents[0], "noise": latents[1], "context": context, "guidance_scale": 3.5}
    step |= {f"history{i}": one for i, one in enumerate(latents[2:])}
    # No sampler's row: each of those has zeros, which hide an input.
    step |= {"row": random.uniform(0.1, 1, 12), "timestep_features": features}
    given = {"plan": plan, "encode": {"tokens": tokens}, "step": step, "decode": {"latents": latents[0]}}
    given["noise"] = {"seed": 2**31 - 3, "index": 1000, "stream": 7, "scale": 14.6}
    return {name: arrays(device, part, name, **given[name]) for name, part in PARTS.items()}


@pytest.mark.parametrize("signature", PARTS)
def test_signatures_give_what_python_gives(signature, inputs, device, program, tmp_path):
    part = PARTS[signature]
    native = run_native(program, device, part, signature, inputs[signature], tmp_path)
    with device.part(part) as run:
        python = run(signature, **inputs[signature])
    assert set(native) == set(python)
    for name, expected in python.items():
        assert expected.std() > 0 or expected.size == 1, name
        tolerance = 0 if signature in ("plan", "noise", "decode") else CLOSE * np.abs(expected).max()
        np.testing.assert_allclose(native[name], expected, atol=tolerance, rtol=0, err_msg=name)


@pytest.mark.parametrize(("seed", "index", "stream", "scale"), [(0, 0, 0, 1.0), (7, 3, 2, 1.0), (1_234_567_890, 5, 21, 0.1)])
def test_noise_has_the_same_bits_as_in_python(seed, index, stream, scale, device, program, tmp_path):
    given = arrays(device, "sampling", "noise", seed=seed, index=index, stream=stream, scale=scale)
    with device.part("sampling") as run:
        python = run("noise", **given)["noise"]
    native = run_native(program, device, "sampling", "noise", given, tmp_path)["noise"]
    assert native.tobytes() == python.tobytes()


def test_threads_do_not_change_pictures(inputs, device, program, tmp_path):
    pictures = []
    for threads in (1, 2):
        first, *rest = command(program, device, "decoder", "decode", inputs["decode"], tmp_path)
        toolchain.run([first, "--threads", str(threads), *rest])
        pictures.append((tmp_path / "colours.bin").read_bytes())
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize("part", sorted(set(PARTS.values())))
def test_listed_signatures_are_those_of_the_manifest(part, device, program):
    listed = {}
    for line in toolchain.run([str(program), str(device.folder / device.manifest["parts"][part]["file"])]).splitlines():
        if not line.startswith(" "):
            listed[line] = {"inputs": {}, "outputs": {}}
            continue
        kind, name, dtype, *shape = line.split()
        listed[list(listed)[-1]][f"{kind}s"][name] = {"dtype": dtype, "shape": [int(one) for one in shape]}
    assert listed == device.manifest["parts"][part]["signatures"]


def test_library_exports_what_our_header_declares():
    declared = re.findall(r"^(?:LiteRtStatus|void) (LiteRt\w+)\(", (NATIVE / "litert.h").read_text(), re.MULTILINE)
    library = ctypes.CDLL(str(toolchain.litert()))
    assert len(declared) > 25 and not [name for name in declared if not hasattr(library, name)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file": "nowhere"}, "nowhere: No such file or directory"),
        ({"file": "."}, "Is a directory"),
        ({"file": __file__}, "test_native.py: the file is not a TFLite model"),
        ({"signature": "paint"}, "paint: there is no signature paint"),
        ({"inputs": ["colours=DATA"]}, "colours: decode has no input colours"),
        ({"inputs": []}, "decode: decode needs the input latents"),
        ({"inputs": ["latents"]}, "latents: an input must be NAME=DATA"),
        ({"inputs": ["latents=nowhere"]}, "nowhere: cannot be read"),
        ({"inputs": [f"latents={__file__}"]}, "latents has 4096 bytes; got 4097"),
        ({"inputs": ["latents=/dev/null"]}, "latents has 4096 bytes; got 0"),
        ({"folder": "/nowhere"}, "/nowhere/colours.bin: cannot be written"),
        ({"options": ["--threads", "0"]}, "threads must be at least 1; got 0"),
        ({"options": ["--fast"]}, "usage: run_signature"),
    ],
)
def test_what_is_wrong_is_told_in_the_last_line(change, words, inputs, device, program, tmp_path):
    inputs["decode"]["latents"].tofile(tmp_path / "latents")
    given = {"options": [], "file": str(device.folder / "decoder.tflite"), "signature": "decode", "folder": str(tmp_path)}
    given |= {"inputs": [f"latents={tmp_path / 'latents'}"]} | change
    arguments = [*given["options"], given["file"], given["signature"], *given["inputs"], given["folder"]]
    done = toolchain.ended([str(program), *arguments])
    assert done.returncode == (2 if "usage" in words else 1)
    assert words in done.stderr.splitlines()[-1]


def test_reason_of_a_run_that_fails_is_told(inputs, device, program, tmp_path):
    given = {"tokens": np.full_like(inputs["encode"]["tokens"], 10**9)}
    done = toolchain.ended(command(program, device, "text_encoder", "encode", given, tmp_path))
    assert done.returncode == 1
    assert re.search(r"LiteRT's RunCompiledModel failed: runtime failure \(status 3\): gather index out of bounds", done.stderr)


def test_no_memory_is_lost_or_misused(inputs, device, tmp_path):
    checked = build(tmp_path, ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1"])
    for signature, part in PARTS.items():
        toolchain.run(command(checked, device, part, signature, inputs[signature], tmp_path))
    model = str(device.folder / "decoder.tflite")
    for arguments in (
        [model],
        [model, "paint", "x"],
        [model, "decode", "x"],
        [__file__],
    ):  # frees what there is after errors, too
        done = toolchain.ended([str(checked), *arguments])
        assert done.returncode in (0, 1) and "Sanitizer" not in done.stderr, done.stderr


MAPPED = """
import ctypes, sys

library, model = ctypes.CDLL(sys.argv[1]), sys.argv[2]
library.tfsd_open.restype, library.tfsd_open.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p]
library.tfsd_close.argtypes = [ctypes.c_void_p]
opened = library.tfsd_open(model.encode(), 1, ctypes.create_string_buffer(512))
mapped = model in open("/proc/self/maps").read()
library.tfsd_close(opened)
print(bool(opened), mapped, model in open("/proc/self/maps").read())
"""


def test_open_models_are_mapped_and_closed_ones_are_not(device, tmp_path):
    litert = toolchain.litert()
    flags = ["-shared", "-fPIC", litert, f"-Wl,-rpath,{litert.parent}"]
    library = toolchain.compile_c([NATIVE / "runtime.c"], tmp_path / "runtime.so", flags)
    model = device.folder.resolve() / "denoiser.tflite"
    assert toolchain.run([sys.executable, "-c", MAPPED, str(library), str(model)]) == "True True False\n"
