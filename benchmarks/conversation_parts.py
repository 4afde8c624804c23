"""Makes the parts of the conversations that benchmarks play: words, and pictures that are as large as photos."""

import io

import numpy as np
from PIL import Image

WORDS = ("the", "red", "square", "lies", "left", "of", "a", "blue", "one", "and", "above", "the", "grey", "noise")


def noisy_jpeg(seed: int) -> bytes:
    """Return a 224x224 JPEG of about 30 KB."""
    rng = np.random.default_rng(seed)
    shapes = Image.fromarray(rng.integers(40, 216, (14, 14, 3), dtype=np.uint8))
    smooth = np.asarray(shapes.resize((224, 224), Image.Resampling.BICUBIC), np.int16)
    grainy = smooth + rng.integers(-40, 40, smooth.shape, np.int16)
    file = io.BytesIO()
    Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()
