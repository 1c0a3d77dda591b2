"""The CLIP tokenizer: prompts to token ids by byte-pair encoding."""

import html
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import ftfy
import numpy as np
import regex

from tfsd.errors import TfsdWarning, shown, warn
from tfsd.specs import CLIPSpec
from tfsd.text.vocabulary import FIRST_MARK, vocabulary, word_ids

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_PROMPT_BYTES = 65536  # in UTF-8; no piece has more than 32, so 75 tokens stand for 2400 and some spaces
WORDS = r"'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"  # each stretch that is encoded on its own
_SPACES = regex.compile(r"\s+")
_LONG_REFERENCE = regex.compile(r"&#([0-9]{8,})")
_SHOWN_LETTERS = 300  # of cut-off text in messages


class PromptTruncationWarning(TfsdWarning):
    """A prompt has more tokens than the text encoder reads; the message shows what was cut off."""


class Piece(NamedTuple):
    """One token of a prompt. `text` shows bytes of incomplete characters as `\\xNN`."""

    id: int
    text: str
    ends_word: bool


class Split(NamedTuple):
    """What becomes of a prompt. `kept_text + cut_text` is the cleaned prompt; marks and padding are left out."""

    kept: list[Piece]
    cut: list[Piece]
    kept_text: str
    cut_text: str


def clean(text: str, *, repair: bool = True) -> str:
    """Returns the text that is split into words: entities resolved twice, single spaces, lower case.

    `repair` first undoes wrong decodings and the like with ftfy, as OpenAI's tokenizer does and KerasCV's does not.
    """
    text = ftfy.fix_text(text) if repair else text
    text = _unescape(_unescape(text)).strip()
    return _SPACES.sub(" ", text).strip().lower()


def _unescape(text: str) -> str:
    # Python refuses to read numbers of thousands of digits; eight significant ones are already no character.
    return html.unescape(_LONG_REFERENCE.sub(lambda found: "&#" + (found[1].lstrip("0")[:8] or "0"), text))


class Tokenizer:
    """Turns prompts into the tokens that a CLIP text encoder reads.

    The spec gives the length, the ids of marks and padding, and whether text is repaired with ftfy; without one, Stable
    Diffusion 1.x. A prompt that contains `<|startoftext|>` or `<|endoftext|>` gets those marks, as in CLIP.

    Call: prompts -> int32 [B, L].
    Source: `SimpleTokenizer`, OpenAI CLIP; without ftfy that of KerasCV.
    """

    def __init__(self, spec: CLIPSpec | None = None):
        self.spec = spec or CLIPSpec()
        self._marks = {START: self.spec.start_token, END: self.spec.end_token}
        self._mark_texts = {i: text for text, i in self._marks.items()}
        alternatives = [*map(regex.escape, self._marks), WORDS]  # in this order
        self._words = regex.compile("|".join(alternatives), regex.IGNORECASE)

    def clean(self, prompt: str) -> str:
        """Returns the prompt as it is before it is split into words."""
        return clean(prompt, repair=self.spec.ftfy)

    def encode(self, prompt: str) -> list[int]:
        """Returns the ids of a prompt between the start and the end mark, however many there are.

        Raises: `TypeError` if it is not a string; `ValueError` above `MAX_PROMPT_BYTES` or with halves of surrogate pairs.
        """
        return self._encode(self._checked(prompt, "prompt"))

    def pad(self, ids: Sequence[int]) -> list[int]:
        """Returns `ids` filled up to the text encoder's length.

        Raises: `ValueError` if they are more than that.
        """
        if len(ids) > self.spec.length:
            raise ValueError(f"ids must be at most {self.spec.length}; got {len(ids)}. Shorten the prompt.")
        return [*ids, *[self.spec.pad_token] * (self.spec.length - len(ids))]

    def __call__(self, prompts: str | Sequence[str], *, on_long: str = "truncate", name: str = "prompt") -> np.ndarray:
        """Returns the tokens of one prompt or of several, padded: int32 [B, L].

        A prompt with too many tokens keeps the first L - 2 between the marks and a `PromptTruncationWarning` shows the
        rest; with `on_long="error"` it is refused. Errors call the argument `name`.

        Raises: as `encode`, and `ValueError` for a prompt that is too long if asked to.
        """
        if on_long not in ("truncate", "error"):
            raise ValueError(f'on_long must be "truncate" or "error"; got {shown(on_long)}.')
        if isinstance(prompts, str):
            named = {name: prompts}
        elif isinstance(prompts, (list, tuple)) or (isinstance(prompts, np.ndarray) and prompts.ndim == 1):
            named = {f"{name}[{i}]": prompt for i, prompt in enumerate(prompts)}
        else:
            raise TypeError(f"{name} must be a str or a list of str; got {type(prompts).__name__}.")
        tokens = np.empty((len(named), self.spec.length), np.int32)
        for row, (label, prompt) in zip(tokens, named.items()):
            row[:] = self._fit(prompt, label, on_long)
        return tokens

    def split(self, prompt: str) -> Split:
        """Returns the pieces of a prompt and what of it is kept and cut off.

        Raises: as `encode`.
        """
        text = self._checked(prompt, "prompt")
        pieces = [self._piece(i) for i in self._encode(text)[1:-1]]
        room = self.spec.length - 2
        return Split(pieces[:room], pieces[room:], *self._cut(text))

    def kept_words(self, prompt: str) -> Iterator[tuple[regex.Match, Sequence[int]]]:
        """Yields the words of the cleaned prompt, as matches in it, with their ids, up to the one at which it is cut off.

        Raises: as `encode`.
        """
        room = self.spec.length - 2
        for found, ids in self._matches(self._checked(prompt, "prompt")):
            room -= len(ids)
            if room < 0:
                return
            if found[0] not in self._marks:
                yield found, ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, with a space after every word and marks written out, as KerasCV does.

        Raises: `TypeError` for an id that is not an integer; `ValueError` for an id outside the vocabulary.
        """
        table, parts = vocabulary(), []
        for i in map(operator.index, ids):
            mark = self._mark_texts.get(i)
            if mark is not None:
                parts.append(mark.encode("utf-8"))
            elif 0 <= i < FIRST_MARK:
                parts.append(table.pieces[i] + b" " * table.ends_word[i])
            else:
                raise ValueError(f"ids must be from 0 to {FIRST_MARK + len(self._marks) - 1}; got {i}.")
        return b"".join(parts).decode("utf-8", "replace")

    def _checked(self, prompt: str, name: str) -> str:
        """Returns the cleaned prompt, or raises what `encode` says."""
        if not isinstance(prompt, str):
            raise TypeError(f"{name} must be a str; got {type(prompt).__name__}.")
        size = len(prompt) if len(prompt) > MAX_PROMPT_BYTES else len(prompt.encode("utf-8", "surrogatepass"))
        if size > MAX_PROMPT_BYTES:
            raise ValueError(f"{name} must be at most {MAX_PROMPT_BYTES} bytes of UTF-8; got at least {size}. Shorten it.")
        try:  # before ftfy, which would replace it
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"U+{ord(prompt[error.start]):04X}"
            raise ValueError(f"{name} must be Unicode text; got half a surrogate pair, {half}. Remove it.") from None
        return self.clean(prompt)

    def _matches(self, text: str) -> Iterator[tuple[regex.Match, Sequence[int]]]:
        """Yields every word in the cleaned text, and its ids."""
        for found in self._words.finditer(text):
            mark = self._marks.get(found[0])
            yield found, (word_ids(found[0]) if mark is None else (mark,))

    def _encode(self, text: str) -> list[int]:
        return [self.spec.start_token, *(i for _, ids in self._matches(text) for i in ids), self.spec.end_token]

    def _fit(self, prompt: str, name: str, on_long: str) -> list[int]:
        text, length = self._checked(prompt, name), self.spec.length
        ids = self._encode(text)
        if len(ids) <= length:
            return self.pad(ids)
        cut = _shortened(self._cut(text)[1].strip())
        if on_long == "error":
            raise ValueError(
                f"Prompt is too long (should be <= {length} tokens): {name} has {len(ids)}. "
                f'Remove {cut} or as much elsewhere, or pass on_long="truncate".'
            )
        message = f"{name} has {len(ids)} tokens and only {length} are read; cut off: {cut}"
        warn(message, PromptTruncationWarning)
        return [*ids[: length - 1], self.spec.end_token]

    def _cut(self, text: str) -> tuple[str, str]:
        """Returns the cleaned text in two parts: what the kept ids stand for, and the rest."""
        room = self.spec.length - 2
        for found, ids in self._matches(text):
            if len(ids) > room:
                start = found.start()
                word = text[start:].encode("utf-8")
                inside = sum(len(vocabulary().pieces[i]) for i in ids[:room])
                place = start + len(word[:inside].decode("utf-8", "ignore"))  # half a character counts as cut off
                return text[:place], text[place:]
            room -= len(ids)
        return text, ""

    def _piece(self, i: int) -> Piece:
        mark = self._mark_texts.get(i)
        if mark is not None:
            return Piece(i, mark, False)
        table = vocabulary()
        return Piece(i, table.pieces[i].decode("utf-8", "backslashreplace"), table.ends_word[i])


def _shortened(text: str) -> str:
    rest = len(text) - _SHOWN_LETTERS
    return repr(text) if rest <= 0 else f"{text[:_SHOWN_LETTERS]!r} and {rest} more characters"
