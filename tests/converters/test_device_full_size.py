"""The parts of Stable Diffusion 1.x at full size, random weights, as files for phones. Needs 16 GB of memory, 10 GB of disk."""

import pytest

from tfsd.converters.device.jobs import measure_conversion, measure_quantization
from tfsd.converters.device.lint import MAX_BYTES, lint, look
from tfsd.converters.device.recipes import GPU_PARTS, plan_sizes
from tfsd.specs import PRESETS

pytestmark = pytest.mark.full_size
SPEC = PRESETS["sd-1.4"]
MEMORY = 24e9


@pytest.mark.parametrize("part", ["text_encoder", "decoder", "denoiser"])
def test_part_is_converted_and_quantized_within_the_limits_of_phones(part, tmp_path):
    whole = tmp_path / f"{part}.tflite"
    made = measure_conversion(whole, SPEC, part, (512, 512))
    assert made.peak_bytes < MEMORY
    for quantize in ("float16", "int8"):
        file = tmp_path / quantize / whole.name
        file.parent.mkdir()
        quantized = measure_quantization(whole, file, part, quantize)
        assert quantized.peak_bytes < MEMORY
        assert not lint(file, gpu=part in GPU_PARTS)
        assert look(file).signatures == look(whole).signatures
        planned = plan_sizes(SPEC)[quantize][part].file_bytes
        assert quantized.file_bytes <= MAX_BYTES and 0.98 < quantized.file_bytes / planned < 1.05
        file.unlink()
