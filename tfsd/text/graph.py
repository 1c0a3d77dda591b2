"""The CLIP tokenizer as TensorFlow operations, for models that take prompts as strings: SavedModels of TF Serving.

The tokens are those of `tfsd.text.Tokenizer`, whatever version of Unicode the server's TensorFlow was built with and
whatever its locale. HTML's references and what ftfy repairs are handled in the graph, too, with one
exception, `NOT_REPAIRED`.
"""

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from tfsd.specs import CLIPSpec
from tfsd.text import characters
from tfsd.text.bpe import END, START
from tfsd.text.cleaning import Cleaner
from tfsd.text.vocabulary import BYTES, FIRST_MERGE, vocabulary

# 75 tokens stand for at most 2400 bytes and 75 spaces, so whatever a text encoder reads fits; far less than the 64 KiB of
# the Python tokenizer, because here one request's words are merged on the machine that all requests share.
MAX_GRAPH_PROMPT_BYTES = 4096
PAIRS_FILE = "clip_merges.txt"  # one line per merge, in order: left id * 65536 + right id
# What the tokens of a model with `ftfy` depend on beyond this graph. Without it nothing is left out.
NOT_REPAIRED = (
    "text that was once decoded with the wrong encoding, such as 'cafÃ©' for 'café' or 'itâ€™s' for 'it’s'. ftfy guesses what "
    "it was; the graph takes it as it stands. Clients that meet such text send `ftfy.fix_encoding(prompt)`."
)
_PAIR = 2**16
_NO_RANK = 2**31 - 1


class GraphTokens(NamedTuple):
    """What becomes of a batch of prompts."""

    tokens: tf.Tensor  # [B, L] int32
    truncated: tf.Tensor  # [B] int32: tokens cut off


def write_pairs(folder: Path) -> Path:
    """Writes the merges as the file that `GraphTokenizer` reads and a SavedModel takes along, and returns its path."""
    path = Path(folder) / PAIRS_FILE
    ranked = sorted((rank, pair) for pair, rank in vocabulary().ranks.items())
    path.write_text("".join(f"{left * _PAIR + right}\n" for _, (left, right) in ranked), encoding="ascii")
    return path


class GraphTokenizer(tf.Module):
    """Turns prompts into the tokens that a CLIP text encoder reads, in the graph.

    The vocabulary is an asset: a SavedModel with this module holds its file, and loading fills the table from there. The
    file is written to `folder`, which must last until the model is saved; without one, to a folder that lives as long as
    the tokenizer.

    Call: prompts string [B] in UTF-8 -> tokens int32 [B, L], truncated int32 [B]. The caller refuses prompts of more than
    `MAX_GRAPH_PROMPT_BYTES`. Invalid UTF-8 counts as U+FFFD.
    """

    def __init__(self, spec: CLIPSpec | None = None, *, folder: Path | None = None):
        super().__init__(name="tokenizer")
        self.spec = spec or CLIPSpec()
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="tfsd-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.asset = tf.saved_model.Asset(str(write_pairs(folder)))
        columns = {"key_dtype": tf.int64, "key_index": 0, "value_dtype": tf.int64}
        lines = tf.lookup.TextFileInitializer(self.asset.asset_path, **columns, value_index=tf.lookup.TextFileIndex.LINE_NUMBER)
        self.ranks = tf.lookup.StaticHashTable(lines, _NO_RANK)
        self.cleaner = Cleaner(repair=self.spec.ftfy)
        self.words = characters.word_pattern(START, END)
        # One trace for all the signatures that call it.
        self.tokenize = tf.function(self._tokenize, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)

    def __call__(self, prompts) -> GraphTokens:
        """Returns the tokens of prompts [B] and how many of each were cut off."""
        prompts = tf.convert_to_tensor(prompts, tf.string)
        found = GraphTokens(*self.tokenize(prompts))
        count = prompts.shape[0]
        return GraphTokens(tf.ensure_shape(found.tokens, [count, self.spec.length]), tf.ensure_shape(found.truncated, [count]))

    def _tokenize(self, prompts):
        with tf.device("/cpu:0"):  # integers would else travel to an accelerator and back at every operation
            count = tf.size(prompts)
            words = tf.strings.split(tf.strings.regex_replace(self.cleaner(prompts), self.words, r"\1 "))
            ids, places = self._merged(words.values)
            return self._padded(ids, tf.gather(words.value_rowids(), places), count)

    def _merged(self, words):
        """Returns the ids of all words, one after the other, and the word that each belongs to: int32 [N] both."""
        is_start, is_end = tf.equal(words, START), tf.equal(words, END)
        words = tf.where(is_start | is_end, "?", words)  # one id, that of the mark in the end
        sizes = tf.strings.length(words)
        letters = tf.cast(tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8), tf.int32)
        places = tf.repeat(tf.range(tf.size(words)), sizes)
        ids = tf.gather(tf.constant(vocabulary().byte_ids), letters)
        ids = tf.tensor_scatter_nd_add(ids, tf.cumsum(sizes)[:, None] - 1, tf.fill(tf.shape(sizes), BYTES))
        ids, places = self._merge(ids, places, tf.size(words))
        ids = tf.where(tf.gather(is_start, places), self.spec.start_token, ids)
        return tf.where(tf.gather(is_end, places), self.spec.end_token, ids), places

    def _merge(self, ids, places, count):
        """Merges in every word the pair of lowest rank, all its places from the left, until no pair has a rank."""

        def ranked(ids, places, index):
            """Returns the ranks of the pairs that begin at `index`; what is the last of its word begins none."""
            after = tf.minimum(index + 1, tf.size(ids) - 1)
            left, right = tf.gather(ids, index), tf.gather(ids, after)
            paired = tf.equal(tf.gather(places, index), tf.gather(places, after)) & tf.not_equal(index, after)
            pairs = tf.where(paired, tf.cast(left, tf.int64) * _PAIR + tf.cast(right, tf.int64), -1)
            return tf.cast(self.ranks.lookup(pairs), tf.int32)

        def body(ids, places, ranks):
            lowest = tf.math.unsorted_segment_min(ranks, places, count)
            found = tf.equal(ranks, tf.gather(lowest, places)) & (ranks < _NO_RANK)
            index = tf.range(tf.size(ids))
            first = found & ~tf.concat([[False], found[:-1]], axis=0)  # of a run like that of "aaaa", whose pairs overlap
            run = tf.cumsum(tf.cast(first, tf.int32))
            run_start = tf.gather(tf.concat([[0], tf.cast(tf.where(first)[:, 0], tf.int32)], axis=0), run)
            merging = found & tf.equal((index - run_start) % 2, 0)
            ids = tf.where(merging, ranks + FIRST_MERGE, ids)
            kept = tf.where(~tf.concat([[False], merging[:-1]], axis=0))[:, 0]
            ids, places, ranks, merged = (tf.gather(values, kept) for values in (ids, places, ranks, merging))
            changed = tf.where(merged | tf.concat([merged[1:], [False]], axis=0))[:, 0]  # looking all up again takes longest
            ranks = tf.tensor_scatter_nd_update(ranks, changed[:, None], ranked(ids, places, tf.cast(changed, tf.int32)))
            return ids, places, ranks

        state = (ids, places, ranked(ids, places, tf.range(tf.size(ids))))
        shapes = (tf.TensorShape([None]),) * 3
        return tf.while_loop(lambda *state: tf.reduce_any(state[2] < _NO_RANK), body, state, shape_invariants=shapes)[:2]

    def _padded(self, ids, rows, count):
        """Returns tokens [B, L] and the numbers of those cut off, of the ids of all rows one after the other."""
        room = self.spec.length - 2
        sizes = tf.math.bincount(tf.cast(rows, tf.int32), minlength=count, maxlength=count)
        columns = tf.range(tf.size(ids)) - tf.gather(tf.cumsum(sizes, exclusive=True), rows)
        kept = tf.where(columns < room)[:, 0]
        where = tf.stack([tf.cast(tf.gather(rows, kept), tf.int32), tf.gather(columns, kept) + 1], axis=1)
        tokens = tf.fill([count, self.spec.length], self.spec.pad_token)
        tokens = tf.tensor_scatter_nd_update(tokens, where, tf.gather(ids, kept))
        ends = tf.stack([tf.range(count), tf.minimum(sizes, room) + 1], axis=1)
        tokens = tf.tensor_scatter_nd_update(tokens, ends, tf.fill([count], self.spec.end_token))
        starts = tf.fill([count, 1], self.spec.start_token)
        return tf.concat([starts, tokens[:, 1:]], axis=1), tf.maximum(sizes - room, 0)
