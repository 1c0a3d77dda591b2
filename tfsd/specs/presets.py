"""The specs of published models."""

from dataclasses import replace

from tfsd.specs.model import ModelSpec

SD_1_4 = ModelSpec(name="sd-1.4", licence="CreativeML Open RAIL-M")
PRESETS: dict[str, ModelSpec] = {
    "sd-1.4": SD_1_4,
    "sd-1.5": replace(SD_1_4, name="sd-1.5"),
}
