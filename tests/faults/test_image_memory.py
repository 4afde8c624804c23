"""The decoding memory that is counted for an image is what decoding it needs, measured in a separate process."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rollout.images import inspect_image

SIDE = 1_600
MEASURE = """
import sys
from pathlib import Path
from rollout.images import load_pixels

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

load_pixels(Path(sys.argv[1]).read_bytes())
data = Path(sys.argv[2]).read_bytes()
Path("/proc/self/clear_refs").write_text("5")  # reset the peak
before = status("VmRSS")
load_pixels(data)
print(status("VmHWM") - before)
"""
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("PNG", "RGB", {}),
    ("PNG", "RGBA", {"turned": True}),
    ("PNG", "LA", {"turned": True}),
    ("PNG", "L", {"transparency": 3}),
    ("PNG", "P", {"transparency": 3}),
    ("PNG", "1", {}),
    ("JPEG", "RGB", {"turned": True}),
    ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
    ("JPEG", "CMYK", {"progressive": True, "turned": True}),
    ("GIF", "P", {"transparency": 3, "save_all": True, "disposal": 2}),
    ("WEBP", "RGB", {"method": 0}),
    ("WEBP", "RGBA", {"method": 0, "turned": True}),
    ("WEBP", "RGBA", {"method": 0, "lossless": True, "quality": 0}),
    ("BMP", "RGB", {}),
    ("BMP", "P", {}),
]


def picture(side: int, format_name: str, mode: str, options: dict[str, Any]) -> bytes:
    noise = Image.effect_noise((side // 8, side // 8), 90).resize((side, side))
    options = {"compress_level": 1, **options} if format_name == "PNG" else dict(options)
    if options.pop("turned", False):
        exif = Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    image = noise.convert("RGB").quantize(16) if mode == "P" else noise.convert(mode)
    if mode == "RGBA":
        image.putalpha(noise)
    if options.get("save_all"):
        options["append_images"] = [image.rotate(90)]
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


@pytest.mark.parametrize(("format_name", "mode", "options"), CASES)
def test_decoding_an_image_takes_the_memory_that_is_counted_for_it(
    format_name: str, mode: str, options: dict[str, Any], tmp_path: Path
) -> None:
    small, large = (picture(side, format_name, mode, options) for side in (16, SIDE))
    for name, data in (("small", small), ("large", large)):
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    taken = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
    counted = inspect_image(large).decoding_bytes
    assert taken <= counted
    if (format_name, mode) != ("WEBP", "RGBA"):  # its count includes code tables of a size that ordinary files lack
        assert taken >= counted / 2
