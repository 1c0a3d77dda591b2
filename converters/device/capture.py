"""Records the inputs of a bundle's parts while images are made: quantization is calibrated and judged with them.

The loop is the one of the apps. It runs the parts in TensorFlow, so no files are needed yet.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from tfsd.converters.device.parts import DevicePart
from tfsd.device import StepLoop, fitted

Records = dict[str, list[dict[str, np.ndarray]]]  # part -> inputs of its calls, in order


class Recorder(StepLoop):
    """Runs the parts as graphs of TensorFlow; `records` keeps the inputs of the networks among them."""

    def __init__(self, manifest: dict, parts: dict[str, DevicePart]):
        super().__init__(manifest)
        self.records: Records = {}
        self._parts = parts

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[Callable[..., dict[str, np.ndarray]]]:
        """Yields `run(signature, **inputs)`."""

        def run(signature: str, **given):
            arrays = fitted(given, self.manifest["parts"][name]["signatures"][signature]["inputs"])
            if name != "sampling":
                self.records.setdefault(name, []).append({key: np.array(value) for key, value in arrays.items()})
            function = self._parts[name].signatures[signature].function
            found = function(**{key: tf.constant(value) for key, value in arrays.items()})
            return {key: value.numpy() for key, value in found.items()}

        yield run


def capture_inputs(manifest: dict, parts: dict[str, DevicePart], prompts: Sequence[str], *, seed: int, num_steps: int) -> Records:
    """Returns the inputs of the text encoder, the denoiser and the decoder while images of `prompts` are made.

    Raises: as `StepLoop.text_to_image`.
    """
    recorder = Recorder(manifest, parts)
    recorder.text_to_image(list(prompts), seed=seed, num_steps=num_steps)
    return recorder.records


def spread(records: Records, count: int) -> Records:
    """Returns at most `count` records of each part, evenly spread over its calls and including the last one."""
    chosen = {part: np.unique(np.linspace(len(calls) - 1, 0, count).round().astype(int)) for part, calls in records.items()}
    return {part: [calls[i] for i in chosen[part]] for part, calls in records.items()}
