"""Programs compiled by XLA, shared by all models of one spec.

TensorFlow keeps what XLA has compiled until the process ends, about 100 MB for each size and batch of pictures whatever the
weights. Models therefore share one traced function, whose arguments are the weights: loading a model again compiles nothing.
"""

import dataclasses
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import keras
import tensorflow as tf

from tfsd import models
from tfsd.errors import shown
from tfsd.programs import Programs
from tfsd.specs import ModelSpec

_SHARED: dict[tuple, tuple[list, list[Programs]]] = {}
_BUILDING = threading.Lock()


class WithWeights:
    """A shared program with the weights of one model. Call: as the method that was compiled.

    Inside another graph, such as an export's, the model's own method is compiled instead: a trace made there refers to the
    variables of this model, and fails for others when they are gone.
    """

    def __init__(self, programs: Programs, weights: list[tf.Variable], own: Callable):
        self._programs, self._weights = programs, weights
        self._own = Programs(own, jit_compile=True)

    def __call__(self, *arguments):
        """Returns what the method returns."""
        return self._programs(self._weights, *arguments) if tf.executing_eagerly() else self._own(*arguments)

    def experimental_get_tracing_count(self) -> int:
        """Returns how often the method was traced, for all models."""
        return self._programs.experimental_get_tracing_count()


def shared(
    steps: Callable, spec: ModelSpec, parts: Mapping[str, keras.Model], methods: tuple[str, ...]
) -> list[WithWeights]:
    """Returns methods of `steps(spec, parts)`, compiled by XLA once for all parts of such a spec.

    The functions keep the variables of `parts`; what is traced, with parts that have no weights, keeps none.

    Raises: `ValueError` if `parts` are not those of `spec`.
    """
    dtypes = tuple((name, part.dtype_policy.name) for name, part in parts.items())
    key = (steps, _computing(spec), dtypes, methods)
    with _BUILDING:
        if key not in _SHARED:
            _SHARED[key] = _without_weights(steps, spec, dtypes, methods)
        template, programs = _SHARED[key]
    variables = [variable for part in parts.values() for variable in part.variables]
    for ours, theirs in zip(template, variables, strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            wanted = f"{ours.dtype} {ours.shape}"
            raise ValueError(f"{theirs.path} is {theirs.dtype} {theirs.shape}; the spec {shown(spec.name)} has {wanted}.")
    values, own = [variable.value for variable in variables], steps(spec, parts)
    return [WithWeights(one, values, getattr(own, method)) for one, method in zip(programs, methods)]


def _computing(spec: ModelSpec) -> ModelSpec:
    """Returns the spec without what changes no number."""
    size = (spec.vae.factor, spec.vae.factor)
    return dataclasses.replace(
        spec, name="any", licence="", default_size=size, default_sampler="any", default_steps=1, default_guidance=1.0
    )


def _without_weights(steps: Callable, spec: ModelSpec, dtypes: tuple, methods: tuple[str, ...]) -> tuple[list, list[Programs]]:
    """Returns the variables of networks without weights, and programs that take the weights as first argument."""

    def build():
        with keras.StatelessScope(initialize_variables=False):
            return {name: models.build(spec, dtype=dtype, parts=(name,))[name] for name, dtype in dtypes}

    with ThreadPoolExecutor(1) as thread:  # Keras notes such variables per thread, and would allocate them with the next model
        parts = thread.submit(build).result()
    template = [variable for part in parts.values() for variable in part.variables]
    own = steps(spec, parts)

    def with_weights(method: Callable) -> Callable:
        def call(weights, *arguments):
            with keras.StatelessScope(state_mapping=list(zip(template, weights))):
                return method(*arguments)

        return call

    return template, [Programs(with_weights(getattr(own, method)), jit_compile=True) for method in methods]
