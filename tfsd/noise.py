"""Seeded noise that is the same on every target, and the same that KerasCV draws for a seed.

Philox4x32-10 and Box-Muller, in int32 operations that eager TensorFlow, graphs, XLA and TFLite's builtins share, and in
float32 operations that all of them round alike. Each has a logarithm, a sine and a cosine of its own: XNNPACK's logarithm is
off by 1e-7 near 1, which a root makes 2e-5. So these three are polynomials here, and targets differ by less than 1e-6.
`tf.random` is no substitute: its numbers for one seed differ between XLA and the rest.
"""

import math

import tensorflow as tf

from tfsd.arguments.checks import whole
from tfsd.specs.limits import INT64

INITIAL_STREAM = 0  # of the initial noise; step i of a sampler draws from stream i + 1
IMAGE_STREAM = 2**16  # of the draws from the distribution of a given image's latents
SEED_PERIOD = 2**31 - 2

LAST_VALUE = 4 * 2**32  # of a seed's noise: four to a group, and groups are counted in 32 bits

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_SCRAMBLE_KEY = (0x3EC8F720, 0x02461E29)  # of TensorFlow's stateless random ops, random_ops_util.h
_GROUP = 4  # values from one call of Philox


def effective_seed(seed: int) -> int:
    """Returns the seed in [0, 2**31 - 2) that `seed`, any int64, stands for.

    Source: Keras 3 on TensorFlow, `_cast_seed`; so -1 is 2147483645 and 2147483646 is 0.

    Raises: `TypeError` for anything but a whole number, `ValueError` outside int64.
    """
    return whole("seed", seed, *INT64) % SEED_PERIOD


def highest_index(shape: tuple[int, ...]) -> int:
    """Returns the highest index whose noise, values of `shape`, does not begin again at that of another index."""
    return LAST_VALUE // math.prod(shape) - 1


def require_counters(indices, shape: tuple[int, ...]):
    """Raises `ValueError` for an index above the highest one."""
    if max(indices) > highest_index(shape):
        raise ValueError(f"index must be from 0 to {highest_index(shape)} at this size; got {max(indices)}.")


def normal_noise(seeds, indices, stream, shape: tuple[int, ...]) -> tf.Tensor:
    """Returns standard normal noise float32 [B, *shape], each row from its own seed and index alone.

    Row (seed, i) of `INITIAL_STREAM` is row i of what KerasCV 0.9 draws for a batch with that seed.

    Call: seeds int32 [B] from `effective_seed`, indices int32 [B] from 0, stream int32 scalar from 0, shape
    of one row in Python numbers -> [B, *shape].
    Raises: `ValueError` if `shape` does not hold a multiple of four values: rows would then share a group.
    Source: `BoxMullerFloat`, TensorFlow random_distributions.h.
    """
    size = math.prod(shape)
    if size % _GROUP:
        raise ValueError(f"shape must hold a multiple of {_GROUP} values; got {tuple(shape)}, which holds {size}.")
    words = noise_words(seeds, indices, stream, size // _GROUP)
    u = [tf.cast(_low_bits(word, 23), tf.float32) * 2.0**-23 for word in words]
    values = []
    for radius, angle in (u[0:2], u[2:4]):
        radius = tf.sqrt(-2.0 * _log(tf.maximum(radius, 1e-7)))
        sine, cosine = _sine_and_cosine(angle * (2 * math.pi))
        values += [radius * sine, radius * cosine]
    return tf.reshape(tf.stack(values, axis=-1), (-1, *shape))


def _log(x: tf.Tensor) -> tf.Tensor:
    """Returns the natural logarithm of numbers in [2**-31, 1), within 2e-7 of their own size."""
    exponent = tf.zeros_like(x)
    for shift in (16.0, 8.0, 4.0, 2.0, 1.0):  # to [0.5, 1), exactly
        small = x < 2.0**-shift
        x, exponent = tf.where(small, x * 2.0**shift, x), tf.where(small, exponent + shift, exponent)
    low = x < math.sqrt(0.5)
    x, exponent = tf.where(low, x + x, x), tf.where(low, exponent + 1.0, exponent)
    ratio = (x - 1.0) / (x + 1.0)  # log x = 2 artanh(ratio)
    return 2.0 * ratio * _polynomial(ratio * ratio, [1 / n for n in (1, 3, 5, 7, 9)]) - exponent * math.log(2)


def _sine_and_cosine(angle: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns sine and cosine of angles in [0, 2 pi], within 1e-7."""
    quarter = tf.floor(angle * (2 / math.pi) + 0.5)
    # Cody and Waite 1980: the first two parts of pi / 2 are so short that their products are exact.
    rest = angle - quarter * 1.5703125 - quarter * 4.837512969970703e-4 - quarter * 7.549789954891882e-8
    square = rest * rest
    sine = rest * _polynomial(square, [1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880])
    cosine = _polynomial(square, [1.0, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -1 / 3628800])
    odd = tf.equal(quarter, 1.0) | tf.equal(quarter, 3.0)
    sine, cosine = tf.where(odd, cosine, sine), tf.where(odd, sine, cosine)
    below, left = (quarter > 1.5) & (quarter < 3.5), (quarter > 0.5) & (quarter < 2.5)
    return tf.where(below, -sine, sine), tf.where(left, -cosine, cosine)


def _polynomial(x: tf.Tensor, coefficients: list[float]) -> tf.Tensor:
    """Returns the sum of coefficient i times the i-th power of x."""
    total = tf.zeros_like(x) + coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def noise_words(seeds, indices, stream, groups: int) -> tuple[tf.Tensor, ...]:
    """Returns the random words behind `normal_noise`: four int32 tensors [B, groups], their bits as uint32.

    Source: `StatelessRandomOp` of TensorFlow, which scrambles the seed pair (seed, stream) into key and counter.
    """
    seeds = tf.convert_to_tensor(seeds, tf.int32)[:, None]
    indices = tf.convert_to_tensor(indices, tf.int32)[:, None]
    zeros = tf.zeros_like(seeds)
    key0, key1, counter2, counter3 = philox((seeds, zeros, zeros + stream, zeros), _SCRAMBLE_KEY)
    counter0 = indices * groups + tf.range(groups)[None, :]
    zeros = tf.zeros_like(counter0)
    return philox((counter0, zeros, counter2 + zeros, counter3 + zeros), (key0, key1))


def philox(counter, key) -> tuple[tf.Tensor, ...]:
    """Returns the four words of Philox4x32-10 for four counter words and two key words.

    Words are int32 tensors of one shape whose bits stand for uint32; key words may be Python numbers.
    """

    def one_round(i, counter, key):
        (c0, c1, c2, c3), (k0, k1) = counter, key
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        xor = tf.bitwise.bitwise_xor
        counter = xor(xor(high1, c1), k0), low1, xor(xor(high0, c3), k1), low0
        return i + 1, counter, tuple(word + _signed(by) for word, by in zip(key, _KEY_STEPS))

    key = tuple(tf.constant(_signed(word)) if isinstance(word, int) else word for word in key)
    # A loop, not ten copies: XLA fuses those into one kernel that recomputes, 200 times slower and seconds to compile.
    return tf.while_loop(lambda i, *_: i < _ROUNDS, one_round, (0, tuple(counter), key))[1]


def _signed(word: int) -> int:
    """Returns the int32 with the low 32 bits of `word`."""
    return (word + 2**31) % 2**32 - 2**31


def _low_bits(word: tf.Tensor, bits: int) -> tf.Tensor:
    # TFLite has no builtin for AND; a right shift is arithmetic, so this is right for negative words too.
    return word - tf.bitwise.right_shift(word, bits) * 2**bits


def _halves(word: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the high and the low 16 bits of `word`, both in [0, 2**16)."""
    return _low_bits(tf.bitwise.right_shift(word, 16), 16), _low_bits(word, 16)


def _multiply(word: tf.Tensor, factor: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the high and the low word of the 64-bit product, from products of halves that wrap around."""
    high, low = _halves(word)
    factor_high, factor_low = divmod(factor, 2**16)
    bottom, _ = _halves(low * factor_low)
    left, left_low = _halves(high * factor_low)
    right, right_low = _halves(low * factor_high)
    carry = tf.bitwise.right_shift(bottom + left_low + right_low, 16)
    return high * factor_high + left + right + carry, word * _signed(factor)
