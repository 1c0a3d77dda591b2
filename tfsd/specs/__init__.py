"""What a model is, as data: sizes, numbers and schedules. The sole difference between presets.

A spec is frozen, compares by value and is stored as `spec.json` in a model folder. Nothing here imports TensorFlow.
"""

from tfsd.specs.checks import LIMITS, MAX_LEVELS, SpecError
from tfsd.specs.json import from_json, to_json
from tfsd.specs.model import NUMERICS, ModelSpec
from tfsd.specs.networks import CLIPSpec, UNetSpec, VAESpec
from tfsd.specs.parts import NETWORKS, Part
from tfsd.specs.presets import PRESETS, SD_1_4
from tfsd.specs.schedule import FlowSpec, ScheduleSpec, VPSpec

__all__ = [
    "LIMITS",
    "MAX_LEVELS",
    "NETWORKS",
    "NUMERICS",
    "PRESETS",
    "SD_1_4",
    "CLIPSpec",
    "FlowSpec",
    "ModelSpec",
    "Part",
    "ScheduleSpec",
    "SpecError",
    "UNetSpec",
    "VAESpec",
    "VPSpec",
    "from_json",
    "to_json",
]
