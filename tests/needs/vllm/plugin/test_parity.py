"""The trainer and the engine make the same patches, bit for bit. The comparison runs in the environment of vLLM."""

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rollout.doctor.engines.pixel_comparison import probe_images
from rollout.serving.vllm import SHIM_DIRECTORY

CONFIG = Path(__file__).parents[1] / "world" / "pictures.yaml"
COMPARE = """
import anyio, dataclasses, json, sys
from pathlib import Path
from renderers_adapter.adapter import load_processor_config
from rollout.engine.httpx_transport import HttpxTransport
from rollout.doctor.engines.pixel_comparison import compare_pixels

async def main(url, model, key):
    config = load_processor_config(Path(model))
    async with HttpxTransport(key or None) as transport:
        parity = await compare_pixels(transport, url, model="tiny", config=config, family="qwen_vl")
    differences = [dataclasses.asdict(difference) for difference in parity.differences]
    print(json.dumps([parity.matching_backend, parity.summary(), differences]))

anyio.run(main, *sys.argv[1:])
"""
LOAD = """
import collections, json, random
import numpy as np
from PIL import Image
from vllm.multimodal.image import ALLOWED_IMAGE_FORMATS
from vllm.multimodal.media.image import ImageMediaIO
from renderers_adapter.decoding_memory import shared_decoding_memory
from rollout.images import ImageError, ImageLimits, decoded_image
from rollout.images.formats import FORMATS, READERS_ASKED_BEFORE
from tests.fuzz.fuzz_image_structure import MAKERS

loader, outcomes = ImageMediaIO(image_mode="RGB"), collections.defaultdict(collections.Counter)

def outcome(data):
    try:
        with decoded_image(data, ImageLimits(), shared_decoding_memory()) as image:
            ours = np.asarray(image)
    except ImageError:
        return "refused"
    try:
        theirs = np.asarray(loader.load_bytes(data).media)
    except Exception as error:
        return f"the engine fails: {error!r}"
    return "equal" if np.array_equal(ours, theirs) else "different"

for number in range(250 * len(MAKERS)):
    make = MAKERS[number % len(MAKERS)]
    outcomes[make.__name__][outcome(make(random.Random(number)))] += 1
Image.init()
unnamed = [
    [name, earlier]
    for name in (one.pillow_name for one in FORMATS)
    for earlier in ALLOWED_IMAGE_FORMATS[:ALLOWED_IMAGE_FORMATS.index(name)]
    if Image.OPEN[earlier][1] is None and earlier not in READERS_ASKED_BEFORE[name]
]
print(json.dumps([outcomes, unnamed]))
"""


@pytest.fixture
def beside_vllm(repository: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`beside_vllm(*arguments, **variables)`: run the Python of vLLM's environment with our packages on its path."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        python = f"{os.environ['ROLLOUT_VLLM_VENV']}/bin/python"
        environment = {**os.environ, "PYTHONPATH": f"{repository}{os.pathsep}{SHIM_DIRECTORY}", **variables}
        command = [python, "-W", "ignore", *arguments]
        return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)

    return run


@pytest.fixture
def loaded(beside_vllm: Any) -> Any:
    """Compare vLLM's loader with ours on the same files; also list the readers that vLLM asks and we do not."""
    return json.loads(beside_vllm("-c", LOAD).stdout)


def test_an_image_that_we_accept_has_the_pixels_that_the_engine_loads(loaded: Any) -> None:
    """The files have orientations in EXIF and XMP, 16 bits, CMYK, animations, partial frames; some are damaged."""
    outcomes, _ = loaded
    assert outcomes.keys() == {"jpeg", "png", "gif", "webp", "bmp"}
    for made, counts in outcomes.items():
        assert counts.keys() <= {"equal", "refused"}, made
        assert counts["equal"] >= 100, made


def test_we_ask_each_reader_that_the_engine_asks_before_an_accepted_format(loaded: Any) -> None:
    _, unnamed = loaded
    assert unnamed == []


@pytest.mark.parametrize("family", ["qwen3-vl", "qwen2.5-vl"])
def test_every_probe_gives_the_same_patches(fleet: Mapping[str, Any], beside_vllm: Any, family: str) -> None:
    live = fleet[family]
    done = beside_vllm("-c", COMPARE, live.url, str(live.model_dir), live.api_key or "")
    proven, summary, differences = json.loads(done.stdout)
    assert proven == "torchvision", summary
    assert [one["probe"] for one in differences if one["backend"] == proven] == [probe.name for probe in probe_images()]
    assert "pil makes other patches of" in summary


def test_doctor_compares_the_pixels_before_a_run(fleet: Mapping[str, Any], media: Path, beside_vllm: Any) -> None:
    live = fleet["qwen3-vl"]
    keys = (f'engine.urls=["{live.url}"]', f"run.directory={media / 'runs'}", "engine.multimodal=auto")
    settings = [part for key in keys for part in ("--set", key)]
    done = beside_vllm(
        *("-m", "rollout", "doctor", str(CONFIG), "--live", *settings), MODEL=str(live.model_dir), COLUMNS="400"
    )
    assert (
        "the engine and torchvision make the same patches of 17 probe images: 8-bit values before normalisation"
        in done.stdout
    )
    assert "images from references" in done.stdout
