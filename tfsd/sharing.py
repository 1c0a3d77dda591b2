"""Programs compiled by XLA, shared by all models of one spec.

TensorFlow keeps what XLA has compiled until the process ends, 150 to 200 MB for each size and number of images. Models
therefore share one traced function, whose arguments are the weights: loading a model again compiles nothing.
"""

import contextvars
import dataclasses
import threading
from collections.abc import Callable, Mapping

import keras
import tensorflow as tf

from tfsd.errors import shown
from tfsd.programs import Programs
from tfsd.specs import ModelSpec

_SHARED: dict[tuple, list[Programs]] = {}
_LOCK = threading.Lock()
# The method of the model that is called, and its variables: what a trace is made with if one is needed. A shared program
# keeps neither, or a model that has gone would stay in memory.
_calling: contextvars.ContextVar[tuple[Callable, list[keras.Variable]]] = contextvars.ContextVar("calling")


class WithWeights:
    """A shared program with the weights of one model. Call: as the method that was compiled.

    Inside another graph, such as an export's, the model's own method is compiled instead: a trace made there refers to the
    variables of this model, and fails for others when they are gone.
    """

    def __init__(self, programs: Programs, method: Callable, variables: list[keras.Variable]):
        self._programs, self._method, self._variables = programs, method, variables
        self._weights = [variable.value.handle for variable in variables]
        self._own = Programs(method, jit_compile=True)

    def __call__(self, *arguments):
        """Returns what the method returns."""
        if not tf.executing_eagerly():
            return self._own(*arguments)
        before = _calling.set((self._method, self._variables))
        try:
            return self._programs(self._weights, *arguments)
        finally:
            _calling.reset(before)

    def experimental_get_tracing_count(self) -> int:
        """Returns how often the method was traced, for all models."""
        return self._programs.experimental_get_tracing_count()


def shared(steps: Callable, spec: ModelSpec, parts: Mapping[str, keras.Model], methods: tuple[str, ...]) -> list[WithWeights]:
    """Returns methods of `steps(spec, parts)`, compiled by XLA once for all parts of such a spec.

    The functions keep the variables of `parts`; what they share keeps none.

    Raises: `ValueError` if `parts` are not those of `spec`.
    """
    _require_built_from(spec, parts)
    variables = [variable for part in parts.values() for variable in part.variables]
    layout = tuple((variable.path, tuple(variable.shape), variable.dtype) for variable in variables)
    dtypes = tuple((name, part.dtype_policy.name) for name, part in parts.items())
    key = (steps, _computing(spec), dtypes, layout, methods)
    with _LOCK:
        if key not in _SHARED:
            _SHARED[key] = [Programs(_of_the_caller, jit_compile=True) for _ in methods]
        programs = _SHARED[key]
    own = steps(spec, parts)
    return [WithWeights(one, getattr(own, method), variables) for one, method in zip(programs, methods)]


def _of_the_caller(weights: list, *arguments):
    """Traces the method of the model that is called, with `weights` in place of its variables.

    `weights` are handles. Of variables as arguments, TensorFlow would keep the handles of the first call, and so their memory.
    """
    method, variables = _calling.get()
    values = [tf.raw_ops.ReadVariableOp(resource=handle, dtype=variable.dtype) for handle, variable in zip(weights, variables)]
    for value, variable in zip(values, variables):
        value.set_shape(variable.shape)  # a handle does not tell it
    with keras.StatelessScope(state_mapping=list(zip(variables, values))):
        return method(*arguments)


def _require_built_from(spec: ModelSpec, parts: Mapping[str, keras.Model]):
    """Raises `ValueError` if a part was built from another spec: its program would be taken for one of this spec."""
    for own in spec.parts(parts):
        name, built, wanted = own.name, dataclasses.asdict(parts[own.name].spec), dataclasses.asdict(own.spec)
        for field in wanted:
            if built.get(field) != wanted[field]:
                raise ValueError(
                    f"The {name} was built with {field} {shown(built.get(field))}; the spec {shown(spec.name)} has "
                    f"{shown(wanted[field])}. Pass the spec that the parts were built from."
                )


def _computing(spec: ModelSpec) -> ModelSpec:
    """Returns the spec without what changes no number."""
    size = (spec.vae.factor, spec.vae.factor)
    return dataclasses.replace(
        spec, name="any", licence="", default_size=size, default_sampler="any", default_steps=1, default_guidance=1.0
    )
