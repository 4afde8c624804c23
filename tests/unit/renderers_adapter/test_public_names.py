"""The names that `renderers_adapter` offers, and what importing the package costs."""

import subprocess
import sys

import pytest

import renderers_adapter
from renderers_adapter import RawMMRef, Sidecar, format_ref, geometry_for, layout_fingerprint, parse_ref, raw_mm_item

PROCESSOR = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 65536, "max_pixels": 16777216}
FILE = "a" * 64 + ".png"


def test_a_reference_is_written_and_read_with_public_names_only() -> None:
    geometry = geometry_for("qwen_vl", PROCESSOR)
    layout = geometry.layout(width=800, height=600)
    assert (layout.grid, layout.tokens) == ((1, 38, 50), 475)
    assert geometry.fingerprint == layout_fingerprint("qwen_vl", geometry.knobs)
    payload = geometry.payload(layout)
    item = raw_mm_item(family="qwen_vl", fingerprint=geometry.fingerprint, payload=payload, raw_image_id=FILE)
    images = {"image": {"hashes": ["a" * 32], "placeholders": [{"offset": 0, "length": 475}], "items": [item]}}
    assert Sidecar.decode(images).encode() == images
    ref = RawMMRef("run", "qwen_vl", geometry.fingerprint, "image", "a" * 32, payload, FILE)
    assert parse_ref(format_ref(ref)) == ref


def test_every_public_name_can_be_imported() -> None:
    assert [name for name in renderers_adapter.__all__ if not hasattr(renderers_adapter, name)] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'RawRef'"):
        renderers_adapter.RawRef  # noqa: B018


def test_importing_the_package_imports_no_tokenizer() -> None:
    code = "import sys, renderers_adapter; sys.exit(bool({'tokenizers', 'renderers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
