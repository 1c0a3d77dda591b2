"""What several tests need: a model small enough to be made of random numbers and run in a second."""

import dataclasses
import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Tests start processes while gRPC's threads run in this one; its handlers would write to their standard error.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

import pytest
from gradient_registry import custom_gradients
from memory_growth import resident

from tfsd.specs import CLIPSpec, ModelSpec, UNetSpec, VAESpec

# The default takes a twentieth of the time in which graphs are traced; `give_memory_back` collects what is large.
gc.set_threshold(20_000, 20, 20)

TOY = ModelSpec(
    name="toy",
    text=(CLIPSpec(width=16, layers=1, heads=2, mlp_width=32, kept_tokens=(320, 736, 1565)),),  # a, red, star
    denoiser=UNetSpec(channels=(8, 16), residuals=1, attention=(False, True), heads=(2, 2), context_width=16, groups=4),
    vae=VAESpec(channels=(8, 8, 8, 8), residuals=1, groups=4),
    default_size=(32, 32),
    default_sampler="ddim",
    default_steps=3,
    default_guidance=2.0,
)


LARGE, GREW = 1500, 300  # MB: a test process of this size gives memory back after it has grown by so much
_stayed = [LARGE]  # MB: what was left when it last did so


def give_memory_back(before: int):
    """Frees what is not needed if the process is large, and larger than `before` by GREW: an export alone leaves 1 GB."""
    if resident() > max(LARGE, before + GREW):
        from tensorflow.python.eager import context

        from tfsd.runtime.freeing import free_memory

        context.context().clear_kernel_cache()
        free_memory()
        _stayed[0] = resident()


@pytest.fixture(scope="module", autouse=True)
def memory_comes_back_after_a_module():
    before = resident()
    yield
    give_memory_back(before)


@pytest.fixture(autouse=True)
def memory_comes_back_after_a_test():
    yield
    give_memory_back(_stayed[0])


@pytest.fixture(scope="module", autouse=True)
def no_module_leaves_gradients(request):
    """Fails a test module after which TensorFlow holds a custom gradient: it keeps a graph and all its weights for ever.

    Modules with `TRAINS` are left out: Keras' optimizers trace one for each model that they train.
    """
    before = custom_gradients()
    yield
    if not getattr(request.module, "TRAINS", False):
        assert custom_gradients() - before == set(), "a custom gradient was traced; see tests/gradient_registry.py"


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory):
    """A model folder named like its model, so that where it lies, `--model=toy` finds it."""
    import keras

    from tfsd.models import build
    from tfsd.storage.model_folders import save_model

    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("models") / "toy"
    return save_model(folder, TOY, build(TOY))


RANDOM = ModelSpec(
    name="random",
    text=(CLIPSpec(vocabulary=100, width=16, layers=2, heads=2, mlp_width=32, start_token=98, end_token=99, pad_token=99),),
    denoiser=UNetSpec(channels=(8, 16), residuals=1, attention=(True, False), heads=(2, 4), context_width=16, groups=4),
    vae=VAESpec(channels=(8, 8), residuals=1, groups=4),
    default_size=(32, 32),
)


@pytest.fixture(scope="session")
def random_model():
    """A spec and its parts, no weight of which is zero or one, so that every layer shows in what comes out."""
    import numpy as np

    from tfsd.models import build

    parts, random = build(RANDOM), np.random.default_rng(0)
    for part in parts.values():
        for variable in part.variables:
            values, shape = random.normal(size=variable.shape), variable.shape
            if len(shape) > 1 and variable.name not in ("tokens", "positions"):
                values /= np.sqrt(np.prod(shape[:-1]))
            elif len(shape) == 1:
                values = 0.1 * values + (variable.name == "gamma")
            variable.assign(values)
    return RANDOM, parts


@pytest.fixture(scope="session")
def overflowing_folder(tmp_path_factory):
    """A toy model whose weights float16 can hold, and whose contexts of "dog" it cannot: 76 000 at their largest. Read only."""
    import keras
    import numpy as np

    from tfsd.models import build
    from tfsd.storage.model_folders import save_model

    kept = (*TOY.text[0].kept_tokens, 1929)  # dog
    spec = dataclasses.replace(TOY, name="overflowing", text=(dataclasses.replace(TOY.text[0], kept_tokens=kept),))
    keras.utils.set_random_seed(0)
    parts = build(spec)
    encoder = parts["text_encoder"]
    rows, gamma = np.array(encoder.embeddings.tokens), np.ones(spec.text[0].width, "float32")
    rows[len(kept)] = [1000.0] + [0.0] * (spec.text[0].width - 1)  # normed, the highest first value that there can be: sqrt(15)
    gamma[0] = 65504 / 3.3
    encoder.embeddings.tokens.assign(rows)
    encoder.norm.gamma.assign(gamma)
    return save_model(tmp_path_factory.mktemp("models") / "overflowing", spec, parts)
