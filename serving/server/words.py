"""Warnings about words in prompts that a model was not trained on, for the headers of answers.

The form of an answer is TensorFlow Serving's, so the warning is a header: JSON over HTTP, trailing metadata over gRPC. The log
has only the number of words, as it never contains prompts.
"""

import functools
import json
from collections.abc import Iterable, Mapping

import numpy as np

from tfsd.errors import CheckpointError
from tfsd.specs import CLIPSpec, SpecError
from tfsd.text import Tokenizer, unknown_words, unknown_words_message

HTTP_HEADER = "X-Tfsd-Warning"
_TEXTS = ("prompt", "negative_prompt")


class Words:
    """The vocabulary of a model: the `kept_tokens` of its manifest; an empty list means all tokens."""

    def __init__(self, kept_tokens: Iterable[int]):
        """Raises: `CheckpointError` for values that are not tokens."""
        try:
            self._spec = CLIPSpec(kept_tokens=tuple(kept_tokens))
        except (SpecError, TypeError, ValueError) as error:
            raise CheckpointError(f"The manifest's kept_tokens are damaged: {error}") from error

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer(self._spec)

    @property
    def are_few(self) -> bool:
        """Whether the model was trained on some words only."""
        return bool(self._spec.kept_tokens)

    def unknown(self, inputs: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
        """Returns the words of a request that the model was not trained on, by input."""
        if not self.are_few:
            return {}
        texts = {name: [text.decode("utf-8", "replace") for text in inputs[name]] for name in _TEXTS if name in inputs}
        found = {name: unknown_words(self._tokenizer, dict.fromkeys(prompts)) for name, prompts in texts.items()}
        return {name: words for name, words in found.items() if words}

    def message(self, unknown: Mapping[str, list[str]]) -> str:
        """Returns the warning about such words; empty if there are none."""
        return " ".join(unknown_words_message(self._spec, words, name) for name, words in unknown.items())


def http_headers(warning: str) -> dict[str, str]:
    """Returns the header for a warning, in ASCII."""
    return {HTTP_HEADER: json.dumps(warning)} if warning else {}
