"""Contact sheets: many images and their prompts on one page."""

import io
import math
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tfsd.images.files import write_files


def contact_sheet(shown: list[tuple[np.ndarray, str]], path: str | Path, columns: int = 8):
    """Writes a PNG of (image, prompt) pairs, whole or not at all; raises `ImageFileError` if that fails."""
    side, foot = shown[0][0].shape[0], 42  # three lines of text
    rows = math.ceil(len(shown) / columns)
    sheet = Image.new("RGB", (columns * (side + 4), rows * (side + foot)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, prompt) in enumerate(shown):
        left, top = i % columns * (side + 4), i // columns * (side + foot)
        sheet.paste(Image.fromarray(np.asarray(image)), (left, top))
        lines = textwrap.wrap(prompt, width=max(8, side // 5), max_lines=3)
        draw.text((left, top + side), "\n".join(lines), fill="black", font_size=9)
    file = io.BytesIO()
    sheet.save(file, format="PNG")
    write_files({Path(path): file.getvalue()})
