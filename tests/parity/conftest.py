"""The tiny reference model of diffusers, and the ways in which TensorFlow runs its parts."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from tfsd.converters import convert
from tfsd.specs import ModelSpec
from tfsd.storage.model_folders import load_parts, load_spec

DATA = Path(__file__).parents[1] / "data" / "diffusers"
MODES = {"eager": lambda f: f, "xla": lambda f: tf.function(f, jit_compile=True)}
AS_THEY_ARE = ("input_ids", "states", "state", "context", "timesteps", "sigmas", "image", "mask")


class Reference(NamedTuple):
    """A model of diffusers with random weights, and what diffusers 0.42.1 computed with it.

    Recorded maps have channels last; their names are those of the file.
    """

    spec: ModelSpec
    parts: dict
    recorded: dict[str, np.ndarray]


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Reference:
    folder = convert(DATA / "a_sd1", tmp_path_factory.mktemp("reference") / "a_sd1")
    with np.load(DATA / "a_sd1_case1.npz") as file:
        arrays = {name: file[name] for name in file if not name.endswith(("clip_ids", "pooler_output", "clip_skip1"))}
    recorded = {
        name: array if name.endswith(AS_THEY_ARE) else np.ascontiguousarray(np.moveaxis(array, -3, -1))
        for name, array in arrays.items()
    }
    spec = load_spec(folder)
    return Reference(spec, load_parts(folder, spec), recorded)


@pytest.fixture(scope="module", params=["eager", pytest.param("xla", marks=pytest.mark.slow)])
def run(request):
    """Makes a function run eagerly or compiled by XLA. The whole pipeline is compiled in every run of the tests."""
    return MODES[request.param]
