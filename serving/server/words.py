"""Which words of a request's prompts its model never learned: what an answer says beside the pictures.

An answer's form is TensorFlow Serving's, so this goes in its headers: over HTTP as JSON, over gRPC as bytes at the end.
The log tells only how many words there were, as prompts are never in it.
"""

import json
from collections.abc import Iterable, Mapping

import numpy as np

from tfsd.errors import CheckpointError
from tfsd.specs import CLIPSpec, SpecError

HTTP_HEADER = "X-Tfsd-Warning"
_TEXTS = ("prompt", "negative_prompt")


class Words:
    """The vocabulary of a model; `kept_tokens` of its manifest are those that it learned, none of them means all."""

    def __init__(self, kept_tokens: Iterable[int]):
        """Raises: `CheckpointError` for what are no tokens."""
        try:
            self._spec = CLIPSpec(kept_tokens=tuple(kept_tokens))
        except (SpecError, TypeError, ValueError) as error:
            raise CheckpointError(f"The manifest's kept_tokens are damaged: {error}") from error
        self._tokenizer = None

    @property
    def are_few(self) -> bool:
        """Whether the model learned some words only."""
        return bool(self._spec.kept_tokens)

    def unknown(self, inputs: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
        """Returns the words of a request that the model never learned, by the input that has them."""
        if not self.are_few:
            return {}
        from tfsd.text import Tokenizer, unknown_words

        if self._tokenizer is None:
            self._tokenizer = Tokenizer(self._spec)
        texts = {name: [text.decode("utf-8", "replace") for text in inputs[name]] for name in _TEXTS if name in inputs}
        found = {name: unknown_words(self._tokenizer, dict.fromkeys(prompts)) for name, prompts in texts.items()}
        return {name: words for name, words in found.items() if words}

    def message(self, unknown: Mapping[str, list[str]]) -> str:
        """Returns what a person should know of such words; empty where there are none."""
        from tfsd.text import unknown_words_message

        return " ".join(unknown_words_message(self._spec, words, name) for name, words in unknown.items())


def http_headers(warning: str) -> dict[str, str]:
    """Returns the header that carries a warning, in ASCII."""
    return {HTTP_HEADER: json.dumps(warning)} if warning else {}
