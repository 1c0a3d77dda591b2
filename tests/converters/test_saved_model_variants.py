"""Exports with XLA: the bytes that Python draws. Those that compute batches at once, or in bfloat16: but for rounding."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exports import ServingSession, asks_for_xla, pixels, request

from tfsd.api import load
from tfsd.converters.saved_model.export import export_saved_model

pytestmark = pytest.mark.slow
ROWS = {
    "prompt": ["a red star", "red", "a star"],
    "seed": [7, 1, 7],
    "num_steps": [3, 8, 1],
    "sampler": ["dpmpp_2m", "ddpm", "lms"],
    "guidance_scale": [2.0, 1.0, 7.5],
}
VARIANTS = {"exact": {"sizes": [(32, 32), (16, 48)]}, "fused": {"batching": "fused"}, "bfloat16": {"dtype": "bfloat16"}}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, toy_folder, tmp_path_factory):
    options = VARIANTS[request.param]
    out = tmp_path_factory.mktemp("out")
    return export_saved_model(toy_folder, out, batch_sizes=(1, 2, 4), max_steps=8, **options), options


@pytest.fixture(scope="module")
def session(variant):
    with ServingSession(variant[0]) as session:
        yield session


@pytest.mark.filterwarnings("ignore::tfsd.text.PromptTruncationWarning")
def test_batch_of_strangers_draws_what_python_draws_one_by_one(variant, session, toy_folder):
    _, options = variant
    model = load(toy_folder, dtype=options.get("dtype", "float32"))
    files = session("text_to_png", request(**ROWS))["png_bytes"]
    for i, file in enumerate(files):
        row = {name: values[i] for name, values in ROWS.items()}
        expected = np.asarray(model.text_to_image(row.pop("prompt"), **row))[0]
        difference = np.abs(pixels(file).astype(int) - expected)
        assert difference.max() <= (options != VARIANTS["exact"]) and np.mean(difference > 0) < 0.01
    if "sizes" in options:
        other = {"prompt": "a star " * 60, "seed": 1, "num_steps": 8, "sampler": "pndm", "height": 16, "width": 48}
        (file,), (expected,) = session("text_to_png", request(**other))["png_bytes"], model.text_to_image(**other)
        np.testing.assert_array_equal(pixels(file), expected)


@pytest.mark.parametrize("rows", [1, 3])
def test_any_number_of_rows_is_answered(rows, session):
    answer = session("text_to_image", request(prompt=["red"] * rows, seed=list(range(rows))))
    assert answer["images"].shape == (rows, 32, 32, 3)


def test_exports_ask_for_xla(variant):
    assert asks_for_xla(variant[0])


COMPILED = """
import sys
import tensorflow as tf
call = tf.saved_model.load(sys.argv[1])
signature = call.signatures["text_to_png"]
for steps, sampler in ((2, "ddim"), (5, "pndm"), (8, "euler_ancestral"), (1, "lms_karras")):
    numbers = {"index": steps, "num_steps": steps, "height": 32, "width": 32, "guidance_scale": float(steps)}
    rows = {name: tf.constant([value]) for name, value in numbers.items()} | {"seed": tf.constant([steps], tf.int64)}
    signature(prompt=tf.constant(["red"]), negative_prompt=tf.constant([""]), sampler=tf.constant([sampler]), **rows)
"""


def test_steps_and_samplers_compile_nothing(toy_folder, tmp_path):
    folder = export_saved_model(toy_folder, tmp_path, batch_sizes=(1,), max_steps=8)
    dumped = tmp_path / "dumped"
    root = Path(__file__).parents[2]
    env = os.environ | {"XLA_FLAGS": f"--xla_dump_to={dumped} --xla_dump_hlo_as_text", "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", COMPILED, str(folder)], env=env, check=True, capture_output=True)
    programs = [path.name for path in dumped.glob("module_*before_optimizations.txt")]
    assert len(programs) == 4, programs  # encode, begin, advance, finish
