"""Writes the vectors that the tests of Python, Kotlin and Swift share: `python mobile/vectors/make.py`, from the repository.

Tokens come from OpenAI's tokenizer and normals from KerasCV's noise (`tests/data/`), the rest from this package. README.md
says what the files hold.
"""

import base64
import gzip
import hashlib
import io
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DATA = ROOT / "tests" / "data"
STREAMS = ((0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (1234, 0, 0), (1234, 1, 0))  # seed, index, stream: with normals
STREAMS += ((0, 0, 1), (7, 3, 2), (2147483645, 0, 4), (2147483645, 1000, 50))
SEEDS = (0, 1, -1, 2147483645, 2147483646, 2147483647, 2**31, 2**40, -(2**63), 2**63 - 1)
SHAPE = (16, 16, 4)  # of the latents whose noise is written down, those of `tiny`
WRITTEN_GROUPS = 16  # of the 256 that such latents need
SIGNATURES = {"sampling": ("plan", "noise"), "text_encoder": ("encode",), "denoiser": ("step",), "decoder": ("decode",)}
MANIFEST = "manifest.json"
MEMORY = 2_000_000_000  # bytes that each part of the bundle of errors claims to need
GENERATIONS = (
    {
        "prompt": "a red star above a blue house at night",
        "negative_prompt": "",
        "seed": 7,
        "index": 0,
        "sampler": "pndm",  # looks back at four outputs and makes a step more than it is asked for
        "num_steps": 4,
        "guidance_scale": 3.0,
    },
    {
        "prompt": "Two YELLOW cars in the desert &amp; a tree",
        "negative_prompt": "a green fish",
        "seed": -1,
        "index": 2,
        "sampler": "euler_ancestral",  # draws noise at every step
        "num_steps": 4,
        "guidance_scale": 5.5,
    },
)


def tokens() -> list[dict]:
    """Returns OpenAI's ids of all reference prompts, with both marks and nothing cut off.

    `guessed`: ftfy guesses that the text was decoded wrongly, which phones do not. `ids_without_ftfy`: where they differ.
    """
    import ftfy

    lines = gzip.decompress((DATA / "tokenizer" / "cases.jsonl.gz").read_bytes()).decode("utf-8").splitlines()
    found = []
    for case in map(json.loads, lines):
        guessed = ftfy.fix_text(case["text"]) != ftfy.fix_text(case["text"], fix_encoding=False)
        plain = {key: case[key] for key in ("ids_without_ftfy",) if key in case}
        found.append({"text": case["text"], "ids": case["ids"], "guessed": guessed} | plain)
    return found


def noise() -> dict:
    """Returns what stands for seeds, the words of noise, and KerasCV's noise where there is some."""
    import numpy as np
    import tensorflow as tf

    from tfsd.noise import effective_seed, noise_words

    reference = np.load(DATA / "samplers" / "noise.npz")
    seeds, indices, streams = np.array(STREAMS, np.int32).T
    words = tf.stack(noise_words(seeds, indices, streams[:, None], int(np.prod(SHAPE)) // 4), axis=-1).numpy().view(np.uint32)
    written = []
    for (seed, index, stream), drawn in zip(STREAMS, words):
        one = {"seed": seed, "index": index, "stream": stream, "words": drawn[:WRITTEN_GROUPS].ravel().tolist()}
        if stream == 0 and f"seed{seed}" in reference:
            normals = reference[f"seed{seed}"][index].ravel()[: 4 * WRITTEN_GROUPS]
            one["normals"] = [float(str(value)) for value in normals]
        written.append(one)
    seeds = [{"seed": str(seed), "effective": effective_seed(seed)} for seed in SEEDS]
    return {"shape": list(SHAPE), "seeds": seeds, "streams": written}


def generation() -> list[dict]:
    """Returns whole generations of `tiny` at float32, step by step, by the graph of Python without XLA."""
    from tfsd.api import load

    model = load("tiny", jit_compile=False)
    return [_generated(model, one) for one in GENERATIONS]


def _generated(model, one: dict) -> dict:
    import numpy as np
    import tensorflow as tf

    from tfsd.noise import effective_seed
    from tfsd.pipeline import SamplingInputs
    from tfsd.samplers.plans import build_plan

    pipeline, size = model.pipeline, model.spec.default_size
    negative, positive = (model.tokenizer([one[name]]) for name in ("negative_prompt", "prompt"))
    plan = build_plan(model.spec.schedule, one["sampler"], one["num_steps"])
    inputs = SamplingInputs(
        plan=tf.constant(plan.rows[None]),
        init_scale=tf.constant([plan.init_scale], tf.float32),
        seeds=tf.constant([effective_seed(one["seed"])], tf.int32),
        indices=tf.constant([one["index"]], tf.int32),
        guidance=tf.constant([one["guidance_scale"]], tf.float32),
    )
    halves = [pipeline.encode(tf.constant(tokens)) for tokens in (negative, positive)]
    state, latents = pipeline.begin(inputs, *halves, pipeline.latent_shape(*size)), []
    first = state.latents
    for step in range(plan.count):
        state = pipeline.advance(inputs, state, tf.constant(step), tf.constant(step + 1))
        latents.append(_base64(state.latents.numpy()))
    images, _ = pipeline.finish(state.latents)
    made = {"tokens": np.concatenate([negative, positive]).tolist(), "count": plan.count}
    made |= {"init_scale": float(str(np.float32(plan.init_scale))), "first": _base64(first.numpy())}
    return one | {"size": list(size)} | made | {"latents": latents, "picture": _png(images.numpy()[0])}


def _base64(values) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode("ascii")


def _png(pixels) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def errors() -> dict:
    """Returns a bundle of files that are not models, and what to change in it or to ask of it for every error.

    `{folder}` stands for where the bundle lies. `files`: new contents by name, null for a file to remove.
    """
    files = {f"{name}.tflite": f"This is no {name}." for name in SIGNATURES} | {"tokenizer.json": json.dumps(_no_merges())}
    sound = _manifest(files)
    cases = [_error(*case) for case in [*_damages(sound), *_refusals()]]
    return {"files": files | {MANIFEST: json.dumps(sound)}, "cases": cases}


def _no_merges() -> dict:
    lists = ("merges", "letters", "numbers", "ends", "spaces", "lower", "sigma_ignorable", "sigma_cased", "repairs", "controls")
    lists += ("decimal_digits", "references")
    return {"format": 1} | {name: [] for name in lists} | {"entities": {}, "strict_entities": {}}


def _manifest(files: dict[str, str]) -> dict:
    from tfsd.device import FORMATS
    from tfsd.samplers.plans import SAMPLERS
    from tfsd.specs.limits import MAX_INDEX

    described = {
        name: {"sha256": hashlib.sha256(text.encode()).hexdigest(), "bytes": len(text.encode())} for name, text in files.items()
    }
    parts = {
        name: {
            "file": f"{name}.tflite",
            "memory": MEMORY,
            "signatures": {signature: {"inputs": {}, "outputs": {}} for signature in SIGNATURES[name]},
        }
        for name in SIGNATURES
    }
    tokenizer = {"file": "tokenizer.json", "length": 77, "start_token": 49406, "end_token": 49407, "pad_token": 49407}
    return {
        "format": FORMATS[-1],
        "kind": "device",
        "name": "none",
        "tfsd": "0",
        "tensorflow": "0",
        "identity": {"model": "none", "weights": ""},
        "quantize": "none",
        "size": [128, 128],
        "latents": list(SHAPE),
        "tokenizer": tokenizer | {"ftfy": True},
        "samplers": list(SAMPLERS),
        "max_steps": 50,
        "max_index": MAX_INDEX,
        "seed_period": 2147483646,
        "defaults": {"num_steps": 20, "guidance_scale": 7.5, "sampler": "ddim"},
        "parts": parts,
        "files": described,
        "licence": "",
        "licence_url": "",
        "use_restrictions": "",
    }


def _damages(sound: dict) -> list[tuple]:
    """Returns name, changed files, arguments, free memory, id and values of every error in a bundle's files."""
    at, model = {"file": f"{{folder}}/{MANIFEST}"}, {"file": "{folder}/denoiser.tflite"}
    listed, digest = sound["files"]["denoiser.tflite"], hashlib.sha256(b"This is no denoisar.").hexdigest()

    def changed(**entries) -> dict:
        return {MANIFEST: json.dumps({key: value for key, value in (sound | entries).items() if value is not None})}

    no_decoder = sound["parts"] | {"decoder": {"file": "decoder"}}
    wanted = {"wanted": listed["bytes"]}
    hashes = {"actual": digest[:12], "wanted": listed["sha256"][:12]}
    return [
        ("no manifest", {MANIFEST: None}, {}, None, "no_bundle", {"folder": "{folder}"}),
        ("another kind", changed(kind="saved_model"), {}, None, "not_device", at),
        ("half a manifest", {MANIFEST: '{"format": 2,'}, {}, None, "no_json", at),
        ("missing entries", changed(size=None, samplers=None), {}, None, "lacks", at | {"names": "samplers, size"}),
        ("an old format", changed(format=1), {}, None, "format", at | {"format": 1, "known": "2 and 3"}),
        ("no list of files", changed(files={}), {}, None, "no_files", at),
        ("a file elsewhere", changed(files={"../a": listed}), {}, None, "outside", at | {"name": "../a"}),
        ("a file without a hash", changed(files={"a": {"bytes": 1}}), {}, None, "entry", at | {"name": "a"}),
        ("a part without a file", changed(parts=no_decoder), {}, None, "part", at | {"part": "decoder"}),
        ("an entry of another kind", changed(seed_period="2"), {}, None, "field", at | {"name": "seed_period"}),
        ("a missing model", {"denoiser.tflite": None}, {}, None, "unreadable", model | {"reason": "No such file or directory"}),
        ("a truncated model", {"denoiser.tflite": "This is"}, {}, None, "size", model | {"actual": 7} | wanted),
        ("a changed model", {"denoiser.tflite": "This is no denoisar."}, {}, None, "hash", model | hashes),
    ]


def _refusals() -> list[tuple]:
    """Returns the same of every error in what is asked of a bundle."""
    from tfsd.samplers.plans import SAMPLERS
    from tfsd.specs.limits import MAX_INDEX
    from tfsd.text.bpe import MAX_PROMPT_BYTES

    long = {"repeat": "a", "times": 10_000_000}
    size = {"limit": MAX_PROMPT_BYTES, "size": 10_000_000}
    far = {"name": "index", "low": 0, "high": MAX_INDEX, "value": MAX_INDEX + 1}
    return [
        ("no steps", {}, {"num_steps": 0}, None, "range", {"name": "num_steps", "low": 1, "high": 50, "value": 0}),
        ("too many steps", {}, {"num_steps": 51}, None, "range", {"name": "num_steps", "low": 1, "high": 50, "value": 51}),
        ("a far index", {}, {"index": MAX_INDEX + 1}, None, "range", far),
        ("much guidance", {}, {"guidance_scale": 100.5}, None, "guidance", {"high": 100, "value": 100.5}),
        ("less than no guidance", {}, {"guidance_scale": -0.5}, None, "guidance", {"high": 100, "value": -0.5}),
        ("an unknown sampler", {}, {"sampler": "fancy"}, None, "sampler", {"names": ", ".join(SAMPLERS), "value": "fancy"}),
        ("a prompt of 10 MB", {}, {"prompt": long}, None, "prompt_size", {"name": "prompt"} | size),
        ("such a negative prompt", {}, {"negative_prompt": long}, None, "prompt_size", {"name": "negative_prompt"} | size),
        ("little memory", {}, {}, 512_000_000, "memory", {"part": "text_encoder", "needed": "2.0 GB", "free": "0.5 GB"}),
    ]


def _error(name: str, changed: dict, arguments: dict, memory: int | None, key: str, values: dict) -> dict:
    templates = json.loads((HERE.parent / "messages.json").read_text(encoding="utf-8"))
    shown = {name: str(value) for name, value in values.items()}
    own = {"name": name, "files": changed, "arguments": {"prompt": "a red star", "seed": 1} | arguments}
    free = {} if memory is None else {"memory": memory}
    return own | free | {"id": key, "values": shown, "text": templates[key].format(**shown)}


def text_of(made: dict | list) -> str:
    """Returns vectors as JSON in ASCII, one line for each case."""
    if isinstance(made, list):
        return "[\n" + ",\n".join(json.dumps(one, separators=(",", ":")) for one in made) + "\n]\n"
    entries = []
    for key, value in made.items():
        has_cases = isinstance(value, list) and isinstance(value[0], dict)
        entries.append(f"{json.dumps(key)}: {text_of(value).rstrip() if has_cases else json.dumps(value)}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


FILES = {"tokens.json": tokens, "noise.json": noise, "generation.json": generation, "errors.json": errors}


def main():
    """Writes all files."""
    sys.path.insert(0, str(ROOT))  # of a checkout that is not installed
    for name, make in FILES.items():
        (HERE / name).write_text(text_of(make()), encoding="ascii")


if __name__ == "__main__":
    main()
