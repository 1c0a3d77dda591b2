"""The model whose weights the tests save, load and damage, and how its parts are compared."""

import numpy as np

from tfsd.specs import CLIPSpec, ModelSpec, UNetSpec, VAESpec
from tfsd.storage.model_folders import load_parts, load_spec, named_variables

SPEC = ModelSpec(
    name="small",
    text=(CLIPSpec(vocabulary=40, length=8, width=8, layers=1, heads=2, mlp_width=16),),
    denoiser=UNetSpec(
        channels=(8, 16), residuals=1, attention=(False, True), heads=(2, 2), context_width=8, groups=4, transformer_layers=2
    ),
    vae=VAESpec(channels=(8, 16), residuals=1, groups=4),
    licence="MIT",
)

PARTS = tuple(part.name for part in SPEC.parts())


def loaded(folder, **options) -> dict:
    """The parts of a model folder, built from the spec in it."""
    return load_parts(folder, load_spec(folder), **options)


def values(part) -> dict[str, np.ndarray]:
    return {path: np.asarray(variable) for path, variable in named_variables(part).items()}


def assert_same(left, right):
    left, right = values(left), values(right)
    assert list(left) == list(right)
    for path in left:
        np.testing.assert_array_equal(left[path], right[path], err_msg=path)
