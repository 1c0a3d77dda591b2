"""The plans of all samplers and numbers of steps, as tables in an exported graph."""

import numpy as np
import tensorflow as tf

from tfsd.progress import Stages
from tfsd.samplers.plans import build_plan, fitting_samplers, sampler_names
from tfsd.specs import ScheduleSpec


class PlanBank(tf.Module):
    """Looks up what `build_plan` gives, for every sampler that fits the schedule and up to `max_steps` steps.

    Call: sampler string [B] (keys or aliases, case ignored), num_steps int32 [B], both known to be valid ->
    plan [B, R, ROW_SIZE] float32 with as many rows as the longest plan, count int32 [B], init_scale float32 [B].
    """

    def __init__(self, schedule: ScheduleSpec, max_steps: int, *, progress: bool = False):
        super().__init__(name="plans")
        self.samplers = fitting_samplers(schedule)
        aliases = {name: self.samplers.index(key) for name, key in sampler_names().items() if key in self.samplers}
        self._names, self._which = list(aliases), list(aliases.values())
        rest = build_plan(schedule, self.samplers[0], 1).rows[-1:]
        rows, counts, scales = (
            [rest],
            np.zeros((len(self.samplers), max_steps), np.int32),
            np.zeros((len(self.samplers), max_steps)),
        )
        with Stages.within(progress) as stages:
            stages("making plans", len(self.samplers), unit="sampler")
            for which, name in enumerate(self.samplers):
                for steps in range(1, max_steps + 1):
                    plan = build_plan(schedule, name, steps)
                    rows.append(plan.rows[: plan.count])
                    counts[which, steps - 1], scales[which, steps - 1] = plan.count, plan.init_scale
                stages.advance()
            stages("making the graph's tables")
        starts = 1 + np.cumsum(counts).reshape(counts.shape) - counts
        self.longest = int(counts.max())
        self.rows = tf.Variable(np.concatenate(rows), trainable=False, name="rows")  # finished images stay at row 0
        self.starts = tf.Variable(starts.astype(np.int32), trainable=False, name="starts")
        self.counts = tf.Variable(counts, trainable=False, name="counts")
        self.scales = tf.Variable(scales.astype(np.float32), trainable=False, name="init_scales")

    def known(self, sampler):
        """Returns whether each sampler [B] has a known name."""
        return tf.reduce_any(self._matches(sampler), axis=1)

    def _matches(self, sampler):
        return tf.strings.lower(sampler)[:, None] == tf.constant(self._names)

    def __call__(self, sampler, num_steps):
        """Returns plans, their counts and their first scales."""
        which = tf.gather(tf.constant(self._which), tf.argmax(self._matches(sampler), axis=1))
        return self.look_up(which, num_steps, tf.range(self.longest))

    def look_up(self, which, num_steps, steps):
        """Returns rows `steps` [S] of the plans of samplers numbered as in `self.samplers`: [B, S, ROW_SIZE], counts, scales."""
        place = tf.stack([which, num_steps - 1], axis=1)
        # `value()`, since TFLite has no gather_nd for variables.
        start, count, scale = (tf.gather_nd(table.value(), place) for table in (self.starts, self.counts, self.scales))
        start = start[:, None]
        plan = tf.gather(self.rows, tf.where(steps[None, :] < count[:, None], start + steps[None, :], 0))
        return plan, count, scale
