from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfsd.noise import INITIAL_STREAM, effective_seed, noise_words, normal_noise, philox

REFERENCE = np.load(Path(__file__).parent / "data" / "samplers" / "noise.npz")
SEEDS = (0, 1, 1234, 2147483647)
SHAPE = (16, 16, 4)
# sin, cos and log of two float32 libraries; values reach 5
CLOSE = 2e-6
SAME = 1e-6  # of our own polynomials, of which compilers may fuse a product with a sum


def draw(seeds, indices, stream):
    return normal_noise(seeds, indices, stream, SHAPE)


def words(seeds, indices, stream):
    return tf.stack(noise_words(seeds, indices, stream, 64))


def arguments_of(seeds, indices, stream=INITIAL_STREAM):
    return tf.constant(seeds, tf.int32), tf.constant(indices, tf.int32), tf.constant(stream, tf.int32)


def in_tflite(function):
    signature = (tf.TensorSpec([2], tf.int32), tf.TensorSpec([2], tf.int32), tf.TensorSpec([], tf.int32))
    concrete = tf.function(function, input_signature=signature).get_concrete_function()
    content = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module()).convert()
    runner = interpreter(content).get_signature_runner()
    return lambda *arguments: runner(**dict(zip(("seeds", "indices", "stream"), arguments)))["output_0"]


def interpreter(content: bytes):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_content=content)


MODES = {
    "eager": lambda function: function,
    "graph": tf.function,
    "xla": lambda function: tf.function(function, jit_compile=True),
    "tflite": in_tflite,
}


@pytest.fixture(scope="module", params=MODES)
def drawn(request):
    return MODES[request.param](draw)


@pytest.fixture(scope="module", params=MODES)
def worded(request):
    return MODES[request.param](words)


@pytest.mark.parametrize("seed", SEEDS)
def test_seed_gives_the_noise_of_kerascv(drawn, seed):
    ours = drawn(*arguments_of([seed, seed], [0, 1]))
    np.testing.assert_allclose(ours, REFERENCE[f"seed{seed}"], rtol=0, atol=CLOSE)


@pytest.mark.parametrize(
    ("seed", "first"),
    [
        (123, [0.7832616, -0.9333503, 2.9941692, 0.7099598]),
        (1337, [0.6077996, -0.8891753, -0.2857068, 0.195891]),
        (0, [-1.697034, -0.4813767, -0.6622369, 0.08701119]),
    ],
)
def test_first_values_are_those_keras_draws(seed, first):
    np.testing.assert_allclose(normal_noise([seed], [0], 0, (1, 1, 4))[0, 0, 0], first, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("stream", [0, 1, 50])
def test_words_are_the_same_bits_on_every_target(worded, stream):
    arguments = arguments_of([2147483645, 7], [100000, 3], stream)
    np.testing.assert_array_equal(worded(*arguments), words(*arguments))


def test_sampler_streams_are_those_of_the_seed_pair():
    """Stream k is `tf.random.stateless_normal(seed=[s, k])`, run eagerly as KerasCV does."""
    expected = tf.random.stateless_normal((2, *SHAPE), seed=[42, 9])
    np.testing.assert_allclose(normal_noise([42, 42], [0, 1], 9, SHAPE), expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    """The known answers for philox4x32 with 10 rounds in Random123's kat_vectors."""
    words = [tf.constant([word], tf.uint32) for word in counter]
    result = philox([tf.bitcast(word, tf.int32) for word in words], key)
    assert [int(tf.bitcast(word, tf.uint32)[0]) for word in result] == expected


def test_row_of_a_batch_equals_the_row_drawn_alone(drawn):
    seeds, indices = [5, 1234], [3, 1]
    together = np.array(drawn(*arguments_of(seeds, indices)))
    swapped = np.array(drawn(*arguments_of(seeds[::-1], indices[::-1])))
    np.testing.assert_array_equal(together, swapped[::-1])
    np.testing.assert_allclose(together[1], REFERENCE["seed1234"][1], rtol=0, atol=CLOSE)
    for row, (seed, index) in zip(together, zip(seeds, indices)):
        np.testing.assert_allclose(row, normal_noise([seed], [index], 0, SHAPE)[0], rtol=0, atol=SAME)


def test_batch_may_be_unknown_when_traced():
    traced = tf.function(draw, input_signature=(tf.TensorSpec([None], tf.int32),) * 2 + (tf.TensorSpec([], tf.int32),))
    assert traced(*arguments_of([1, 2, 3], [0, 0, 0])).shape == (3, *SHAPE)
    assert traced(*arguments_of([1], [0])).shape == (1, *SHAPE)


def test_noise_is_standard_normal_and_uncorrelated_between_streams():
    first, second = (normal_noise([9], [0], stream, (64, 64, 16)).numpy().ravel() for stream in (0, 1))
    deviation = 1 / np.sqrt(first.size)  # of a mean; five of them below
    for noise in (first, second):
        assert abs(noise.mean()) < 5 * deviation
        assert abs((noise**2).mean() - 1) < 5 * np.sqrt(2) * deviation
        assert abs((noise**4).mean() - 3) < 5 * np.sqrt(96) * deviation
    assert abs((first * second).mean()) < 5 * deviation


@pytest.mark.parametrize(
    ("seed", "expected"),
    [(0, 0), (2147483645, 2147483645), (2147483646, 0), (2147483647, 1), (-1, 2147483645), (2**31, 2), (2**40, 1024)],
)
def test_effective_seed_wraps_as_keras(seed, expected):
    assert effective_seed(seed) == expected
    assert effective_seed(np.int64(seed)) == expected


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (1.0, TypeError, r"seed must be a whole number; got 1\.0"),
        ("1", TypeError, r"seed must be a whole number; got '1'"),
        (None, TypeError, r"seed must be a whole number; got None"),
        (True, TypeError, r"seed must be a whole number; got True"),
        (2**63, ValueError, r"seed must be from -9223372036854775808 to"),
    ],
)
def test_bad_seed_is_named(seed, error, message):
    with pytest.raises(error, match=message):
        effective_seed(seed)


def test_shape_that_would_split_a_group_is_refused():
    with pytest.raises(ValueError, match=r"shape must hold a multiple of 4 values; got \(3, 3, 1\), which holds 9"):
        normal_noise([0], [0], 0, (3, 3, 1))
