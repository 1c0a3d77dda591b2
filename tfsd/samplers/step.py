"""The sampling arithmetic, for every sampler and every target."""

import tensorflow as tf

from tfsd.samplers.rows import HISTORY, ROW_SIZE, PlanRow


def unpack(packed: tf.Tensor) -> PlanRow:
    """Returns rows of plans, float32 [ROW_SIZE] or one per image [B, ROW_SIZE], as a `PlanRow` of [1, 1, 1, 1] or [B, 1, 1, 1].

    They have four dimensions in either case, since LiteRT's GPU accelerator multiplies by no scalar that is computed.
    """
    numbers = tf.split(tf.reshape(packed, [-1, 1, 1, ROW_SIZE]), ROW_SIZE, axis=-1)
    timestep, alpha, sigma, from_latents, from_output, keep, *mix, noise = numbers
    return PlanRow(timestep, alpha, sigma, from_latents, from_output, keep, tuple(mix), noise)


def empty_history(latents: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Returns the history before the first step."""
    return (tf.zeros_like(latents, tf.float32),) * HISTORY


def step(row: PlanRow, latents, history, output, noise) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
    """Moves `latents` one row down the plan: the only sampling arithmetic in the package.

    Call: latents float32, output of any float type and noise float32, each [B, h, w, c]; history HISTORY such
    tensors, newest first -> latents, history.

    The history is a tuple: a loop carries it without copying, delegates that stop at four dimensions take it,
    and a caller that steps by hand (a phone) may rotate its buffers, as `history[1:]` is what came in.
    """
    value = row.from_latents * latents + row.from_output * tf.cast(output, tf.float32)
    history = (value, *history[:-1])
    moved = row.keep * latents + row.noise * noise
    for weight, past in zip(row.mix, history):
        moved += weight * past
    return moved, history
