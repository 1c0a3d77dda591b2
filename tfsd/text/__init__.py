"""Prompts to the tokens that text encoders read."""

from tfsd.text.bpe import MAX_PROMPT_BYTES, Piece, PromptTruncationWarning, Split, Tokenizer
from tfsd.text.unknown_words import UnknownWordsWarning, unknown_words, unknown_words_message

__all__ = [
    "MAX_PROMPT_BYTES", "Piece", "PromptTruncationWarning", "Split", "Tokenizer", "UnknownWordsWarning", "unknown_words",
    "unknown_words_message",
]  # fmt: skip
