"""The cleaning of prompts as TensorFlow operations: what `tfsd.text.bpe.clean` does, one operation for a whole batch.

Text is worked on as strings [B] or as the flat code points of all rows with the row of each, `Letters`.
"""

from typing import NamedTuple

import tensorflow as tf

from tfsd.text import characters
from tfsd.text.characters import COMPOSED_BELOW, Replacements

_REPLACEMENT = 0xFFFD
_TERMINAL_ESCAPES = r"\x1b\[[\p{Nd};]*[a-zA-Z]"  # `ANSI_RE`, ftfy
_BEFORE_TAGS = r"(?s)^((?:[^<]*\n)?).*<.*$"
_REFERENCE = r"(?s)^(#(?:[0-9]+|[xX][0-9a-fA-F]+);?)?.*$"
_STRICT_REFERENCE = r"(?s)^(#(?:[0-9]{1,24}|[xX][0-9a-fA-F]{1,23});)?.*$"  # lengths: `HTML_ENTITY_RE`, ftfy
_HEX_DIGITS = 7  # one more than any character needs: what is cut off behind them makes no difference


class Letters(NamedTuple):
    """The code points of a batch of texts, and the row that each is in."""

    codes: tf.Tensor  # [N] int32
    rows: tf.Tensor  # [N] int64, ascending


def letters_of(texts) -> Letters:
    """Returns the code points of strings [B]; invalid UTF-8 becomes U+FFFD."""
    ragged = tf.strings.unicode_decode(texts, "UTF-8", errors="replace")
    return Letters(ragged.values, ragged.value_rowids())


def strings_of(letters: Letters, count) -> tf.Tensor:
    """Returns the strings [count] that consist of `letters`."""
    ragged = tf.RaggedTensor.from_value_rowids(letters.codes, letters.rows, tf.cast(count, tf.int64), validate=False)
    return tf.ensure_shape(tf.strings.unicode_encode(ragged, "UTF-8"), [None])


def replace(letters: Letters, table: Replacements) -> Letters:
    """Returns the letters with each of the table's replaced by what it stands for there, be it nothing."""
    keys, starts, values = map(tf.constant, table)
    slots = tf.minimum(tf.searchsorted(keys, letters.codes), len(table.keys) - 1)
    found = tf.equal(tf.gather(keys, slots), letters.codes)
    starts, stops = tf.gather(starts, slots), tf.gather(starts, slots + 1)
    sizes = tf.where(found, stops - starts, 1)
    sources = tf.repeat(tf.range(tf.size(sizes)), sizes)
    places = tf.range(tf.size(sources)) - tf.gather(tf.cumsum(sizes, exclusive=True), sources)
    replaced = tf.gather(values, tf.gather(starts, sources) + places)
    codes = tf.where(tf.gather(found, sources), replaced, tf.gather(letters.codes, sources))
    return Letters(codes, tf.gather(letters.rows, sources))


def within(codes, bounds):
    """Returns which of `codes` lie in the ranges that `bounds` opens and closes in turn: bool [N]."""
    return tf.equal(tf.searchsorted(tf.constant(bounds), codes, side="right") % 2, 1)


def lower(letters: Letters) -> Letters:
    """Returns the letters in lower case, as `str.lower` does; `tf.strings.lower` depends on the machine's language."""
    codes, rows = letters
    ignorable, cased = characters.sigma_classes()
    shown = tf.where(~within(codes, ignorable))[:, 0]  # a sigma's neighbours
    states = tf.concat([[-1], tf.where(within(tf.gather(codes, shown), cased), tf.gather(rows, shown), -1), [-1]], axis=0)
    seen = tf.cumsum(tf.scatter_nd(shown[:, None], tf.ones_like(shown), tf.shape(rows, tf.int64)))
    earlier, later = tf.gather(states, tf.maximum(seen - 1, 0)), tf.gather(states, seen + 1)  # a sigma itself is seen, too
    final = tf.equal(earlier, rows) & tf.not_equal(later, rows)
    sigma = tf.where(final, characters.FINAL_SIGMA, characters.SIGMA)
    return replace(Letters(tf.where(tf.equal(codes, characters.CAPITAL_SIGMA), sigma, codes), rows), characters.lower_case())


def _combining(codes, tables: characters.Composition):
    slots = tf.minimum(tf.searchsorted(tf.constant(tables.class_keys), codes), len(tables.class_keys) - 1)
    found = tf.equal(tf.gather(tables.class_keys, slots), codes)
    return tf.where(found, tf.gather(tables.classes, slots), 0)


def compose(letters: Letters) -> Letters:
    """Returns the letters in normal form C, as `unicodedata.normalize` does.

    Takes characters apart, sorts the marks behind each and puts them together again: Unicode 3.11, D117. That a base which
    has taken a mark does not look at earlier ones again need not be seen to: no pair of Unicode's depends on it.
    """
    tables = characters.composition()
    codes, rows = replace(letters, tables.decompositions)
    marks = _combining(codes, tables)
    base = tf.cumsum(tf.cast(tf.equal(marks, 0), tf.int64)) + rows  # grows with every base and every row
    order = tf.argsort(base * 256 + tf.cast(marks, tf.int64), stable=True)

    def body(codes, rows, marks, _):
        places = tf.range(tf.size(codes))
        target, slot = _composable(codes, rows, marks, tables)
        first = tf.math.unsorted_segment_min(tf.where(slot >= 0, places, tf.size(codes)), target, tf.size(codes))
        first = tf.gather(first, target)  # the first letter that the base before this one can take
        joined = tf.equal(first, places)
        made = tf.gather(tables.composed, tf.boolean_mask(slot, joined))
        codes = tf.tensor_scatter_nd_update(codes, tf.boolean_mask(target, joined)[:, None], made)
        kept = tf.where(~joined)[:, 0]
        return *(tf.gather(values, kept) for values in (codes, rows, marks)), tf.reduce_any(joined)

    codes, rows, marks = (tf.gather(values, order) for values in (codes, rows, marks))
    state = (codes, rows, marks, True)
    shapes = (*[tf.TensorShape([None])] * 3, tf.TensorShape([]))
    codes, rows, *_ = tf.while_loop(lambda *state: state[-1], body, state, shape_invariants=shapes)
    return Letters(codes, rows)


def _composable(codes, rows, marks, tables: characters.Composition):
    """Returns the place of the base before each letter, and the slot of the pair that the two make, or -1: int32 [N]."""
    places = tf.range(tf.size(codes))
    is_base = tf.equal(marks, 0)
    earlier = tf.cumsum(tf.cast(is_base, tf.int32), exclusive=True)
    target = tf.gather(tf.concat([[0], tf.cast(tf.where(is_base)[:, 0], tf.int32)], axis=0), earlier)
    adjacent = tf.equal(target, places - 1)
    unblocked = adjacent | (~is_base & (tf.gather(marks, tf.maximum(places - 1, 0)) < marks))
    pairs = tf.cast(tf.gather(codes, target), tf.int64) * 2**21 + tf.cast(codes, tf.int64)
    slot = tf.minimum(tf.searchsorted(tf.constant(tables.pairs), pairs), len(tables.pairs) - 1)
    paired = tf.equal(tf.gather(tables.pairs, slot), pairs) & tf.equal(tf.gather(rows, target), rows)
    return target, tf.where(paired & unblocked & (earlier > 0), slot, -1)


class Entities(tf.Module):
    """The characters that HTML writes as `&...;`: what `html.unescape` makes of them or, if `strict`, ftfy.

    ftfy asks for the semicolon and knows some names in capitals.
    """

    def __init__(self, *, strict: bool):
        super().__init__(name="entities")
        named = characters.entities(strict=strict)
        names, self.strict = sorted(named), strict
        self.texts = ["", *(named[name] for name in names)]
        numbers = tf.range(1, len(names) + 1, dtype=tf.int64)
        self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(names, numbers), 0)
        open_ended = sorted((name for name in names if not name.endswith(";")), key=len, reverse=True)
        self.name_patterns = [r"(?s)^([0-9A-Za-z]+;)?.*$"]  # the longest name counts
        if open_ended:
            self.name_patterns.append(rf"(?s)^({'|'.join(open_ended)})?.*$")
        self.number_pattern = _STRICT_REFERENCE if strict else _REFERENCE

    def __call__(self, texts):
        """Returns strings [B] with their references replaced."""
        return _where_found("&", texts, self._replaced)

    def _replaced(self, texts):
        pieces = tf.strings.split(texts, "&")
        flat, rows = pieces.values, pieces.value_rowids()
        behind = tf.concat([[False], tf.equal(rows[1:], rows[:-1])], axis=0)  # an ampersand
        number = tf.strings.regex_replace(flat, self.number_pattern, r"\1")
        size, text = tf.strings.length(number), _referenced(number)
        if self.strict:  # ftfy believes a semicolon that comes out to be a leftover
            size = tf.where(tf.equal(text, ";"), 0, size)
        for pattern in reversed(self.name_patterns):
            name = tf.strings.regex_replace(flat, pattern, r"\1")
            entity = self.table.lookup(name)
            size = tf.where(entity > 0, tf.strings.length(name), size)
            text = tf.where(entity > 0, tf.gather(tf.constant(self.texts), entity), text)
        replaced = tf.strings.join([text, tf.strings.substr(flat, size, tf.strings.length(flat) - size)])
        kept = tf.strings.join([tf.where(behind, "&", ""), flat])
        return tf.strings.unsorted_segment_join(tf.where(behind & (size > 0), replaced, kept), rows, tf.size(texts))


def _referenced(numbers):
    """Returns the characters for numeric references like `#38;` and `#x26;`: strings [N]. Others give any text."""
    decimal = tf.strings.regex_replace(numbers, r"(?s)^#?0*([0-9]{0,8}).*$", r"\1")  # eight are beyond all characters
    value = tf.strings.to_number(tf.strings.join(["0", decimal]), tf.int64)
    digits = tf.strings.regex_replace(tf.strings.lower(numbers), rf"(?s)^(?:#x)?0*([0-9a-f]{{0,{_HEX_DIGITS}}}).*$", r"\1")
    digits = tf.strings.substr(tf.strings.join(["0" * _HEX_DIGITS, digits]), -_HEX_DIGITS, _HEX_DIGITS)
    digits = tf.cast(tf.io.decode_raw(digits, tf.uint8, fixed_length=_HEX_DIGITS), tf.int32)
    digits = tf.where(digits >= ord("a"), digits - ord("a") + 10, digits - ord("0"))
    hexadecimal = tf.reduce_sum(digits * [16**i for i in reversed(range(_HEX_DIGITS))], axis=1)
    is_hexadecimal = tf.strings.regex_full_match(numbers, "(?s)#[xX].*")
    codes = tf.where(is_hexadecimal, hexadecimal, tf.cast(value, tf.int32))
    codes = tf.where((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000)), _REPLACEMENT, codes)
    letters = Letters(codes, tf.range(tf.size(codes, tf.int64)))
    return strings_of(replace(letters, characters.references()), tf.size(codes))


def _where_found(letter: str, texts, change):
    """Returns strings [B] after `change`, which is spared if none of them has the letter."""
    found = tf.reduce_any(tf.strings.regex_full_match(texts, f"(?s).*{letter}.*"))
    return tf.ensure_shape(tf.cond(found, lambda: change(texts), lambda: texts), [None])


class Repairs(tf.Module):
    """What `ftfy.fix_text` makes of texts, but for its guesses at wrong decodings: strings [B] -> strings [B]."""

    def __init__(self):
        super().__init__(name="repairs")
        self.entities = Entities(strict=True)
        self.removed = characters.removed_pattern()

    def __call__(self, texts):
        """Returns the repaired texts."""
        # From the first line with `<` on, ftfy takes a text for HTML and leaves its references alone.
        tagged = tf.strings.regex_full_match(texts, "(?s).*<.*")
        heads = tf.where(tagged, tf.strings.regex_replace(texts, _BEFORE_TAGS, r"\1"), texts)
        sizes = tf.strings.length(heads)
        tails = tf.strings.substr(texts, sizes, tf.strings.length(texts) - sizes)

        def body(heads, tails, _):
            both = self._repaired(tf.concat([self.entities(heads), tails], axis=0))
            new_heads, new_tails = tf.split(both, 2)
            changed = tf.not_equal(new_heads, heads) | tf.not_equal(new_tails, tails)
            referring = tf.strings.regex_full_match(tf.strings.join([new_heads, new_tails]), "(?s).*&.*")
            again = tf.reduce_any(changed & referring)  # all else that there is to repair is repaired at once
            return tf.ensure_shape(new_heads, [None]), tf.ensure_shape(new_tails, [None]), again

        heads, tails, _ = tf.while_loop(lambda *state: state[-1], body, (heads, tails, True))
        return tf.strings.join([heads, tails])

    def _repaired(self, texts):
        texts = strings_of(replace(letters_of(texts), characters.repairs()), tf.size(texts))
        texts = tf.strings.regex_replace(texts, _TERMINAL_ESCAPES, "")
        texts = tf.strings.regex_replace(texts, self.removed, "")
        composed = rf"[\x{{{COMPOSED_BELOW:x}}}-\x{{10ffff}}]"
        return _where_found(composed, texts, lambda texts: strings_of(compose(letters_of(texts)), tf.size(texts)))


class Cleaner(tf.Module):
    """What `tfsd.text.bpe.clean` makes of prompts, but for ftfy's guesses at wrong decodings.

    Call: strings [B] -> strings [B]; words are parted by single spaces or by nothing.
    """

    def __init__(self, *, repair: bool):
        super().__init__(name="cleaner")
        self.repairs = Repairs() if repair else None
        self.entities = Entities(strict=False)
        self.ends, self.spaces = characters.space_patterns()

    def __call__(self, texts):
        """Returns the cleaned texts."""
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
        if self.repairs is not None:
            texts = self.repairs(texts)
        texts = self.entities(self.entities(texts))
        texts = strings_of(lower(letters_of(texts)), tf.size(texts))
        texts = tf.strings.regex_replace(texts, self.ends, "")
        return tf.strings.regex_replace(texts, self.spaces, " ")
