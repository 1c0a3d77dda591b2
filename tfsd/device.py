"""Images from a device bundle, with what a phone has: a tokenizer, a loop over steps, and LiteRT for the rest.

It is the reference for the apps, which have these same three things. `tfsd export tflite` writes bundles.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Unpack

from tfsd.arguments.checks import batch_of, checked, choice, per_prompt, side_of, whole
from tfsd.arguments.options import ModelOptions, require_known, takes_options
from tfsd.arguments.table import DEVICE, Seeds, Texts
from tfsd.errors import CheckpointError, shown
from tfsd.finite import require_finite
from tfsd.images import Images
from tfsd.images.recipes import recipes_of
from tfsd.noise import effective_seed
from tfsd.progress import Progress
from tfsd.runtime.litert import ACCELERATORS, open_file
from tfsd.runtime.memory import available_memory
from tfsd.samplers.plans import sampler_names
from tfsd.specs import CLIPSpec, SpecError
from tfsd.specs.limits import MAX_BATCH
from tfsd.storage.bundle_fields import PARTS, require_fields
from tfsd.storage.files import check_files, read_json
from tfsd.text import Tokenizer, warn_of_unknown_words

MANIFEST = "manifest.json"
FORMATS = (2, 3)  # readable ones; exports write the last. In 2 the input `timestep_features` of `step` is called `waves`
HISTORY = 4  # earlier values that the signature `step` takes, newest first
_NEEDED = {"format", "name", "identity", "quantize", "size", "latents", "tokenizer", "samplers", "max_steps", "defaults"}
_NEEDED |= {"max_index", "seed_period", "parts", "files"}


def is_bundle(folder: str | Path) -> bool:
    """Tells whether a folder looks like a bundle, whole or damaged. Raises: `CheckpointError` for a manifest that is not JSON."""
    path = Path(folder) / MANIFEST
    return path.is_file() and read_json(path).get("kind") == "device"


def load_bundle_manifest(folder: str | Path) -> dict:
    """Returns the manifest of a bundle whose files are all there and undamaged.

    Raises: `CheckpointError` naming the file that is not.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a device bundle: it has no {MANIFEST}. `tfsd export tflite` makes one.")
    manifest = read_json(path)
    if manifest.get("kind") != "device":
        raise CheckpointError(f"{path} is not the manifest of a device bundle. `tfsd export tflite` makes one.")
    if missing := sorted(_NEEDED - set(manifest)):
        raise CheckpointError(f"{path} is damaged: it lacks {', '.join(missing)}.")
    if manifest["format"] not in FORMATS:
        known = " and ".join(map(str, FORMATS))
        raise CheckpointError(f"{path} has format {str(manifest['format'])[:20]}; this tfsd reads {known}. Export it again.")
    check_files(folder, manifest["files"], path)
    require_fields(path, manifest)
    return manifest


class TooLittleMemory(CheckpointError, MemoryError):
    """A part of a bundle needs more memory than is free."""


def _text(manifest: dict) -> CLIPSpec:
    """Returns what a manifest says of the tokens that its model reads and of those that it learned."""
    text, names = manifest["tokenizer"], ("length", "start_token", "end_token", "pad_token", "ftfy")
    try:  # older bundles do not say which tokens were learned
        return CLIPSpec(**{name: text[name] for name in names}, kept_tokens=tuple(manifest.get("kept_tokens", ())))
    except (SpecError, TypeError) as error:
        raise CheckpointError(f"The bundle's {MANIFEST} is damaged: {error}") from error


class StepLoop(ABC):
    """The loop of an app: tokens, then plan, noise and step for each step, then the image's colours.

    `manifest` is the bundle's; `part` opens one of its files. Only one is open at a time, beside the small one that holds
    plans and noise: first the text encoder, then the denoiser, then the decoder.
    """

    def __init__(self, manifest: dict):
        self.manifest = manifest
        self.text = _text(manifest)
        self.tokenizer = Tokenizer(self.text)
        self._unknown: set[frozenset[str]] = set()  # words that a warning told of
        self._pace: dict = {}

    @abstractmethod
    def part(self, name: str) -> contextlib.AbstractContextManager[Callable[..., dict[str, np.ndarray]]]:
        """Opens a part for `run(signature, **inputs)`, which returns its outputs; inputs fit once they are broadcast."""

    @takes_options(DEVICE)
    def text_to_image(self, prompt: Texts, batch_size: int = 1, seed: Seeds = None, **options: Unpack[ModelOptions]) -> Images:
        """Returns images of a prompt, one after the other; arguments and result as `tfsd.text_to_image`.

        Raises: `TypeError`, `ValueError` naming the argument, also for a size that the bundle was not exported for;
        `CheckpointError` for a model file that LiteRT cannot run; `TooLittleMemory`; `NotFiniteError`; `Cancelled`.
        """
        require_known(self.text_to_image, options)
        show = Progress(options.get("progress", False), options.get("callback"), self._pace)
        prompts = per_prompt(prompt, batch_of(batch_size, MAX_BATCH))
        values = self._checked(seed, options, len(prompts))
        texts = {"negative_prompt": values["negative_prompt"], "prompt": prompts}
        tokens = [self._tokens(each, values["on_long"], name) for name, each in texts.items()]
        contexts = self._contexts(np.stack(tokens, axis=1))
        plan = {"sampler": self.manifest["samplers"].index(values["sampler"]), "num_steps": values["num_steps"]}
        seeds = [effective_seed(one) for one in values["seed"]]
        latents = self._sample(contexts, seeds, values["index"], values["guidance_scale"], plan, show)
        more = {"eta": 0.0, **self.manifest["identity"], "quantize": self.manifest["quantize"]}
        return Images(self._images(latents), recipes_of({"prompt": prompts} | values, more))

    def _checked(self, seed, options: Mapping[str, Any], batch: int) -> dict[str, Any]:
        """Returns the values of the arguments; raises `ValueError` also for those that the bundle was not exported for."""
        sizes, defaults = dict(zip(("height", "width"), self.manifest["size"])), self.manifest["defaults"]
        for name, own in sizes.items():
            if side_of(name, options.get(name), own, 1) != own:
                given = options[name]
                raise ValueError(f"{name} must be {own}, for which this bundle was exported; got {given}. Export another one.")
        limits = {"num_steps": self.manifest["max_steps"], "index": self.manifest["max_index"]}
        own = {"sampler": None}  # the bundle has its own names of samplers
        values = checked(seed, {**options, **own}, batch, DEVICE, {**defaults, **sizes, **own}, limits)
        values["sampler"] = self._sampler(defaults["sampler"] if options.get("sampler") is None else options["sampler"])
        whole("index", max(values["index"]), 0, limits["index"])
        return values

    def _tokens(self, prompts: list[str], on_long: str, name: str) -> np.ndarray:
        tokens = self.tokenizer(prompts, on_long=on_long, name=name)
        warn_of_unknown_words(self.tokenizer, prompts, name, self._unknown)
        return tokens

    def _sampler(self, name: str) -> str:
        """Returns the sampler that a name or an alias, in upper or lower case, stands for. Raises: `ValueError`."""
        names = self.manifest.get("sampler_aliases", sampler_names())  # those of this version, for older bundles
        known = names.get(name.lower()) if isinstance(name, str) else None
        return known if known in self.manifest["samplers"] else choice("sampler", name, self.manifest["samplers"])

    def _contexts(self, tokens: np.ndarray) -> list[np.ndarray]:
        """Returns the contexts [2, L, W] of the tokens [2, L] of each image: the negative prompt's, then the prompt's."""
        with self.part("text_encoder") as run:
            return [run("encode", tokens=pair)["context"] for pair in tokens]

    def _sample(self, contexts, seeds, indices, guidance, plan: dict, show: Progress) -> list[np.ndarray]:
        """Returns the latents of each image after all steps."""
        done = []
        with self.part("sampling") as sampling, self.part("denoiser") as denoiser:
            first = sampling("plan", **plan, step=0)
            count = int(first["count"][0])
            rest = [np.zeros([1, *self.manifest["latents"]], np.float32)] * HISTORY
            jobs = [(i, step) for i in range(len(contexts)) for step in range(count)]
            for start, end in show.chunks(len(jobs), "step"):
                for i, step in jobs[start:end]:
                    image = {"seed": seeds[i], "index": indices[i]}
                    if step == 0:
                        latents = sampling("noise", **image, stream=0, scale=first["init_scale"])["noise"]
                        history = rest
                    row = sampling("plan", **plan, step=step)
                    noise = sampling("noise", **image, stream=step + 1, scale=1.0)["noise"]
                    given = {**row, "noise": noise, "guidance_scale": guidance[i]}
                    given |= {f"history{j}": past for j, past in enumerate(history)}
                    moved = denoiser("step", latents=latents, context=contexts[i], **given)
                    latents, history = moved["latents"], [moved["history"], *history[:-1]]
                    if step == count - 1:
                        done.append(latents)
        require_finite(np.stack(done), "latents", self._dtype)
        return done

    @property
    def _dtype(self) -> str:
        """The float type that errors name: of the recipe if it has one, else of the model that was exported."""
        quantize = self.manifest["quantize"]
        return quantize if quantize == "float16" else str(self.manifest["identity"].get("dtype", "float32"))

    def _images(self, latents: list[np.ndarray]) -> np.ndarray:
        """Returns images uint8 [B, H, W, 3]."""
        with self.part("decoder") as run:
            colours = np.stack([run("decode", latents=one)["colours"] for one in latents])
        return np.stack([(colours >> shift & 255).astype(np.uint8) for shift in (16, 8, 0)], axis=-1)


class LiteRTLoop(StepLoop):
    """Runs the files of a bundle in `folder` through LiteRT, as `manifest` describes them.

    `accelerator`: "cpu", with `threads`, or "gpu" for the parts of which the manifest says that they passed there; the other
    parts run on the CPU.

    Raises: `ValueError` for "gpu" if no part passed there; `OSError` if LiteRT is not installed.
    """

    def __init__(self, folder: str | Path, manifest: dict, *, accelerator: str = "cpu", threads: int = 2):
        self.folder, self.threads = Path(folder), whole("threads", threads, 1, 256)
        super().__init__(manifest)
        self.accelerator = choice("accelerator", accelerator, ACCELERATORS)
        if not any(accelerator in self.accelerators(name) for name in PARTS):
            recipe, reason = self.manifest["quantize"], self.manifest.get("no_gpu") or "The version that exported it tried no GPU"
            raise ValueError(
                f"accelerator must be 'cpu' for a bundle with quantize {shown(recipe)}; got {shown(accelerator)}. {reason}. "
                "Export it again, with quantize 'dynamic'."
            )

    def accelerators(self, part: str) -> list[str]:
        """Returns what a part may run on; bundles that do not say so run on the CPU."""
        return self.manifest["parts"][part].get("accelerators", ["cpu"])

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[Callable[..., dict[str, np.ndarray]]]:
        """Opens a part and yields `run(signature, **inputs)`, which returns its outputs; closes it at the end.

        Raises: `TooLittleMemory`; `CheckpointError` for a file that LiteRT cannot run.
        """
        own = self.manifest["parts"][name]
        _require_memory(name, own["memory"])
        used = self.accelerator if self.accelerator in self.accelerators(name) else "cpu"
        signatures = own["signatures"]
        opened = open_file(self.folder / own["file"], signatures, part=name, accelerator=used, threads=self.threads)
        yield lambda signature, **given: opened(signature, fitted(given, signatures[signature]["inputs"]))


class DeviceBundle(LiteRTLoop):
    """A bundle in a folder, whose files are checked and which makes images through LiteRT.

    Raises: as `LiteRTLoop`; `CheckpointError` for a folder that is not a bundle or is damaged.
    """

    def __init__(self, folder: str | Path, *, accelerator: str = "cpu", threads: int = 2):
        super().__init__(folder, load_bundle_manifest(folder), accelerator=accelerator, threads=threads)


def fitted(given: dict, wanted: dict[str, dict]) -> dict[str, np.ndarray]:
    """Returns the values that a signature takes, as arrays of the shapes and types that a manifest has for them."""
    return {name: np.broadcast_to(np.asarray(given[name], one["dtype"]), one["shape"]) for name, one in wanted.items()}


def _require_memory(part: str, needed: int):
    """Raises `TooLittleMemory` if a part needs more bytes than are free, before the system ends the program."""
    free = available_memory()
    if free is not None and needed > free:
        raise TooLittleMemory(
            f"{part} needs {needed / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free. "
            "Close other programs, or export the bundle with another quantize."
        )
