"""Prompts to the tokens that text encoders read."""

from tfsd.text.bpe import MAX_PROMPT_BYTES, Piece, PromptTruncationWarning, Split, Tokenizer

__all__ = ["MAX_PROMPT_BYTES", "Piece", "PromptTruncationWarning", "Split", "Tokenizer"]
