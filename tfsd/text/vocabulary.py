"""CLIP's byte-pair vocabulary as plain tables, and the merging of one word.

Ids 0 to 255 are the bytes inside a word, 256 to 511 the bytes that end one, then comes one id per merge in the order of
the file, then the start and end marks. Only the standard library is used.
"""

import gzip
import hashlib
import heapq
from functools import lru_cache
from importlib import resources
from typing import NamedTuple

VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"  # MIT licence, (c) 2021 OpenAI, from the CLIP repository
VOCABULARY_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
BYTES = 256
MERGES = 49152 - BYTES - 2  # the file holds more; CLIP stops here
FIRST_MERGE = 2 * BYTES  # the id of the merge of rank 0
FIRST_MARK = FIRST_MERGE + MERGES  # 49406: all ids below stand for bytes
_CACHED_LETTERS = 64  # longer words are rarely seen twice


class Vocabulary(NamedTuple):
    """The tables that every tokenizer of this vocabulary needs."""

    byte_ids: tuple[int, ...]  # [256]: id of each byte inside a word; 256 more where it ends one
    ranks: dict[tuple[int, int], int]  # pair of ids -> rank; lower ranks merge first; the result is FIRST_MERGE + rank
    pieces: tuple[bytes, ...]  # the UTF-8 bytes of each id below the marks
    ends_word: tuple[bool, ...]  # whether that id stands only at the end of a word


def byte_alphabet() -> dict[str, int]:
    """Returns the character that stands for each byte in the vocabulary file, in the order of ids 0 to 255."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # stand for themselves
    hidden = [byte for byte in range(BYTES) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(BYTES + i): byte for i, byte in enumerate(hidden)}


def merges() -> list[tuple[str, str]]:
    """Reads the pairs of pieces that are merged, first the one of lowest rank, from the file that comes with the package.

    Pieces are written in the alphabet of `byte_alphabet`, at the end of a word with `</w>` behind.
    Raises: `RuntimeError` if the file is not the published one.
    """
    packed = (resources.files("tfsd") / "assets" / VOCABULARY_FILE).read_bytes()
    digest = hashlib.sha256(packed).hexdigest()
    if digest != VOCABULARY_SHA256:
        raise RuntimeError(f"{VOCABULARY_FILE} must have sha256 {VOCABULARY_SHA256}; got {digest}. Install tfsd again.")
    lines = gzip.decompress(packed).decode("utf-8").split("\n")
    pairs = (line.split() for line in lines[1 : 1 + MERGES])  # the first line is a heading
    return [(left, right) for left, right in pairs]


@lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    """Returns the tables of the vocabulary; later calls return the same ones. Raises: as `merges`."""
    alphabet = byte_alphabet()
    ids = {letter: i for i, letter in enumerate(alphabet)} | {letter + "</w>": BYTES + i for i, letter in enumerate(alphabet)}
    pieces = [bytes([byte]) for byte in alphabet.values()] * 2
    ends_word = [False] * BYTES + [True] * BYTES
    ranks = {}
    for rank, (left, right) in enumerate(merges()):
        pair = ids[left], ids[right]
        ranks[pair] = rank
        ids[left + right] = FIRST_MERGE + rank
        pieces.append(pieces[pair[0]] + pieces[pair[1]])
        ends_word.append(ends_word[pair[1]])
    byte_ids = [ids[letter] for letter in sorted(alphabet, key=alphabet.__getitem__)]
    return Vocabulary(tuple(byte_ids), ranks, tuple(pieces), tuple(ends_word))


def word_ids(word: str) -> tuple[int, ...]:
    """Returns the ids of one word, in a time that grows as n log n with its length."""
    return _cached_word_ids(word) if len(word) <= _CACHED_LETTERS else _merge(word.encode("utf-8"))


@lru_cache(maxsize=16384)
def _cached_word_ids(word: str) -> tuple[int, ...]:
    return _merge(word.encode("utf-8"))


def _merge(word: bytes) -> tuple[int, ...]:
    """Merges the neighbours of lowest rank, leftmost first, until no neighbours have a rank.

    CLIP merges all places of one pair before it looks again. The result is the same: a pair that a merge brings about has
    a higher rank than that merge, because each line of the vocabulary only uses pieces of earlier lines.
    """
    table = vocabulary()
    ranks, size = table.ranks, len(word)
    ids = [table.byte_ids[byte] for byte in word]
    ids[-1] += BYTES
    ids.append(-1)  # no pair with -1 has a rank: it stands for both ends of the word and for what has been merged away
    before, after = list(range(-1, size)), [*range(1, size + 1), size]
    heap = [(ranks[pair], i) for i, pair in enumerate(zip(ids, ids[1:])) if pair in ranks]
    heapq.heapify(heap)
    while heap:
        rank, i = heapq.heappop(heap)
        j = after[i]
        if ranks.get((ids[i], ids[j])) != rank:  # another merge took one of the two
            continue
        ids[i], ids[j] = FIRST_MERGE + rank, -1
        after[i] = after[j]
        before[after[j]] = i
        for left in (before[i], i):
            pair = ids[left], ids[after[left]]
            if pair in ranks:
                heapq.heappush(heap, (ranks[pair], left))
    return tuple(i for i in ids if i >= 0)
