import pytest

from tfsd.benchmark import benchmark_denoiser
from tfsd.errors import CheckpointError


@pytest.mark.slow
def test_each_setting_is_timed_in_a_process_of_its_own(toy_folder):
    seen = []
    settings = [("float32", True), ("bfloat16", False)]
    records = benchmark_denoiser(model=str(toy_folder), size=32, batch=2, steps=2, settings=settings, report=seen.append)
    assert records == seen and [(r["dtype"], r["jit_compile"]) for r in records] == settings
    for record in records:
        assert record["size"] == 32 and record["batch"] == 2
        assert 0 < record["step_ms"] < 1000 * record["first_s"] and record["peak_mb"] > 50


@pytest.mark.parametrize(("name", "value"), [("size", 100), ("size", 0), ("batch", True), ("steps", 1.5)])
def test_bad_numbers_are_named(name, value, toy_folder):
    with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
        benchmark_denoiser(**{"model": str(toy_folder), name: value})


def test_an_unknown_model_is_refused_before_anything_starts():
    with pytest.raises(CheckpointError, match="There is no model 'sd-9'"):
        benchmark_denoiser(model="sd-9")
