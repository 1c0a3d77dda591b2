"""Pictures of random pixels, with recipes whose prompts are of every awkward kind."""

import numpy as np

from tfsd.images import Images

PROMPTS = ("a red star", 'ein "Haus" \u2603 \U0001f431', "two\nlines", "zero\0byte", "half a pair \ud83d")


def recipe(i=0, **more):
    return {"prompt": PROMPTS[i % 5], "negative_prompt": "", "seed": 7, "index": i, "guidance_scale": 7.5, **more}


def pictures(count=1, height=8, width=16):
    pixels = np.random.RandomState(count).randint(0, 256, (count, height, width, 3)).astype("uint8")
    return Images(pixels, [recipe(i) for i in range(count)])
