"""Kernels: every target's form against the formulas of the papers in float64."""

import numpy as np
import pytest
import tensorflow as tf

from tfsd.models import kernels

ROUNDING = 2e-6  # relative to the largest value: float32, sums in another order
RANDOM = np.random.default_rng(0)
GAMMA, BETA = RANDOM.normal(size=(2, 12)).astype("float32")


def assert_close(value, expected):
    np.testing.assert_allclose(value, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())


@pytest.fixture(params=kernels.TARGETS)
def run(request):
    """Calls a kernel as its target does: phones and TensorFlow's own kernels as a graph, XLA compiled."""

    def call(function, *arguments, **options):
        def traced(*arguments):
            with kernels.using(request.param):
                return function(*arguments, **options)

        return tf.function(traced, jit_compile=request.param == "xla")(*arguments).numpy()

    return call


def test_group_norm_is_its_formula_on_every_target(run):
    for scale in (1.0, 1e3):
        x = (scale * RANDOM.normal(3, 2, (2, 5, 3, 12))).astype("float32")
        groups = x.astype("float64").reshape(2, 15, 4, 3)
        mean, variance = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
        expected = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * GAMMA + BETA
        assert_close(run(kernels.group_norm, x, GAMMA, BETA, groups=4, epsilon=1e-5), expected)


def test_layer_norm_is_its_formula_on_every_target(run):
    x = RANDOM.normal(3, 2, (2, 7, 12)).astype("float32")
    mean, variance = x.astype("float64").mean(-1, keepdims=True), x.astype("float64").var(-1, keepdims=True)
    assert_close(run(kernels.layer_norm, x, GAMMA, BETA, epsilon=1e-5), (x - mean) / np.sqrt(variance + 1e-5) * GAMMA + BETA)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_its_formula_on_every_target(run, masked):
    q, k, v = (RANDOM.normal(size=(2, 3, length, 4)).astype("float32") for length in (5, 5 if masked else 6, 5 if masked else 6))
    mask = np.triu(np.full((5, 5), kernels.MASKED, "float32"), 1) if masked else None
    logits = q.astype("float64") @ k.transpose(0, 1, 3, 2) / 2 + (0 if mask is None else mask)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ v
    expected = mixed.transpose(0, 2, 1, 3).reshape(2, 5, 12)
    assert_close(run(kernels.attend, q, k, v, *([] if mask is None else [mask])), expected)


def test_addition_is_exact_on_every_target(run):
    x, h = RANDOM.normal(size=(2, 2, 3, 5, 4)).astype("float32")
    np.testing.assert_array_equal(run(kernels.add, x, h), x + h)


@pytest.mark.parametrize(("kernel", "options"), [(kernels.group_norm, {"groups": 4}), (kernels.layer_norm, {})])
def test_forms_for_phones_square_nothing_that_half_precision_cannot_hold(kernel, options):
    """Values up to 2000 from their mean: their squares, 4e6, would be infinite in float16."""
    x = tf.constant(np.where(np.arange(48).reshape(1, 2, 2, 12) % 2, 1500.0, -1500.0), tf.float32)

    def normed(x):
        with kernels.using("phone"):
            return kernel(x, GAMMA, BETA, **options, epsilon=1e-5)

    graph = tf.compat.v1.wrap_function(normed, [tf.TensorSpec(x.shape)])
    (square,) = [operation for operation in graph.graph.get_operations() if operation.type == "Square"]
    assert np.max(graph.prune(graph.inputs, square.outputs[0])(x)) < np.finfo("float16").max
