"""Jobs: rows of requests that an engine computes together."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfsd.converters.saved_model.job_functions import JobFunctions
from tfsd.finite import not_finite
from tfsd.serving.server.tensorflow_errors import server_error
from tfsd.serving.wire.errors import ServerError

# The first inputs of a row, before those of its sampling: tokens and negative tokens, or the two contexts.
TEXT_INPUTS = 2


class ImageRow(NamedTuple):
    """One image to make, checked and tokenized; or one row of a denoise request."""

    inputs: tuple[tf.Tensor, ...]  # tokens and negative tokens, or contexts, then the fields of SamplingInputs: one row each
    steps: int  # rows of its plan
    size: tuple[int, int]  # height and width in pixels
    truncated: tuple[int, int]  # tokens of its prompt and of its negative prompt that were cut off
    contexts: bool = False  # whether `inputs` begin with contexts; the result is then latents

    @property
    def alone(self) -> bool:
        """Whether this row must not share a job with rows of other requests."""
        return False

    @property
    def kind(self) -> tuple:
        """Rows of the same kind can share a job."""
        return (*self.size, self.contexts)


class CallRow(NamedTuple):
    """One row of the inputs of another signature."""

    signature: str
    inputs: dict[str, np.ndarray]  # one row each

    @property
    def alone(self) -> bool:
        """Always true: values are checked only in the graph, where an invalid one fails the whole job."""
        return True

    @property
    def steps(self) -> int:
        """A call counts as one step."""
        return 1

    @property
    def kind(self) -> str:
        """Rows of the same kind can share a job."""
        return self.signature


class Job:
    """Images that are computed together, some steps with each call of `advance`."""

    def __init__(self, functions: JobFunctions, rows: Sequence[ImageRow], batch: int, dtype: str):
        self.steps = max(row.steps for row in rows)
        self.done = 0
        self._count, self._contexts = len(rows), rows[0].contexts
        self._functions = functions
        filled = [*rows, *[rows[-1]] * (batch - len(rows))]
        inputs = [values[0] if batch == 1 else tf.concat(values, 0) for values in zip(*(row.inputs for row in filled))]
        self._halves, self._inputs = inputs[:TEXT_INPUTS], inputs[TEXT_INPUTS:]
        self._state: list[tf.Tensor] = []
        self._results: list = []
        self._not_finite = ServerError("INTERNAL", not_finite("latents", dtype))

    def advance(self, steps: int):
        """Computes the next `steps` steps, or all that remain, and after the last step the images.

        Raises: `ServerError` if TensorFlow fails.
        """
        last = min(self.done + steps, self.steps)
        try:
            if not self._state:
                begin = self._functions.begin_from_contexts if self._contexts else self._functions.begin
                self._state = list(begin(*self._halves, *self._inputs))
            moved = self._functions.advance(*self._inputs, *self._state, tf.constant(self.done), tf.constant(last))
            self._state[: len(moved)] = moved
            # Reading also waits for an accelerator; else all chunks would be started before the first is computed.
            latents = self._state[0].numpy()
            if last == self.steps:
                made, finite = self._made(latents)
                rows = list(zip(made, finite))[: self._count]
                self._results = [result if ok else self._not_finite for result, ok in rows]
        except tf.errors.OpError as error:
            raise server_error(error) from error
        self.done = last

    def _made(self, latents: np.ndarray) -> tuple[Sequence, np.ndarray]:
        """Returns the results after the last step, and which of them are finite."""
        if self._contexts:
            return [{"latents": row[None]} for row in latents], np.isfinite(latents).reshape(len(latents), -1).all(axis=1)
        images, finite = self._functions.finish(self._state[0])
        return images.numpy(), finite.numpy()

    def results(self) -> list:
        """Returns the result of each row once all steps are made: an image uint8 [H, W, 3] or {"latents": float32 [1, h, w, c]}.

        The result of a row with numbers that are not finite is a `ServerError`.
        """
        return self._results


class CallJob:
    """Rows of one signature that are computed in one call."""

    steps, done = 1, 0

    def __init__(self, run: Callable[[str, dict], dict], rows: Sequence[CallRow]):
        self._run, self._rows = run, rows
        self._outputs: dict[str, np.ndarray] = {}

    def advance(self, steps: int):
        """Computes all rows. Raises: `ServerError`."""
        names = self._rows[0].inputs
        self._outputs = self._run(
            self._rows[0].signature, {n: np.concatenate([row.inputs[n] for row in self._rows]) for n in names}
        )
        self.done = 1

    def results(self) -> Sequence[dict[str, np.ndarray]]:
        """Returns the outputs of each row, as arrays of one row."""
        return [{name: value[[i]] for name, value in self._outputs.items()} for i in range(len(self._rows))]
