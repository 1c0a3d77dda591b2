"""Prompts to the tokens that text encoders read."""

from tfsd.text.bpe import MAX_PROMPT_BYTES, Piece, PromptTruncationWarning, Split, Tokenizer
from tfsd.text.unknown_words import (
    UnknownWordsWarning,
    own_prompts,
    unknown_words,
    unknown_words_message,
    warn_of_unknown_words,
)

__all__ = [
    "MAX_PROMPT_BYTES", "Piece", "PromptTruncationWarning", "Split", "Tokenizer", "UnknownWordsWarning", "own_prompts",
    "unknown_words", "unknown_words_message", "warn_of_unknown_words",
]  # fmt: skip
