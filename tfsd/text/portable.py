"""The data of the CLIP tokenizer as JSON, for apps, which have neither this package nor its libraries.

What a phone brings itself is Unicode's normal form C, which never changes for a character once it has one. The steps are those
of `tfsd.text.cleaning` and `tfsd.text.bpe`.
"""

import json
from pathlib import Path

from tfsd.text import characters
from tfsd.text.vocabulary import merges

FORMAT = 1


def tokenizer_data() -> dict:
    """Returns the vocabulary and the tables of characters: numbers, texts and lists of them, as JSON has them.

    Ranges of code points are flat lists of where they begin and where they have ended, in turn. Tables are lists of pairs of
    a code point and the text that takes its place. Names of entities lack their ampersand.
    """
    ends, spaces = characters.space_bounds()
    letters, numbers = characters.word_bounds()
    ignorable, cased = characters.sigma_classes()
    return {
        "format": FORMAT,
        "merges": [" ".join(pair) for pair in merges()],
        "letters": letters.tolist(),
        "numbers": numbers.tolist(),
        "ends": ends.tolist(),
        "spaces": spaces.tolist(),
        "lower": _pairs(characters.lower_case()),
        "sigma_ignorable": ignorable.tolist(),
        "sigma_cased": cased.tolist(),
        "repairs": _pairs(characters.repairs()),
        "controls": characters.removed_bounds().tolist(),
        "decimal_digits": characters.digit_bounds().tolist(),
        "entities": characters.entities(strict=False),
        "strict_entities": characters.entities(strict=True),
        "references": _pairs(characters.references()),
    }


def write_tokenizer_data(path: Path) -> Path:
    """Writes `tokenizer_data` as JSON in ASCII, and returns the path."""
    path.write_text(json.dumps(tokenizer_data(), separators=(",", ":")) + "\n", encoding="ascii")
    return path


def _pairs(table: characters.Replacements) -> list[list]:
    bounds = zip(table.starts, table.starts[1:])
    return [[int(key), "".join(map(chr, table.values[a:b]))] for key, (a, b) in zip(table.keys, bounds)]
