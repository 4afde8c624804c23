"""The wheel of the plugin contains the files that are links in the repository."""

import os
import subprocess
import zipfile
from pathlib import Path

SHARED = ("errors.py", "refs.py", "descriptors.py", *(f"geometry/{name}.py" for name in ("base", "knobs", "registry")))


def test_a_wheel_holds_the_contract_byte_for_byte_and_names_its_entry_point(repository: Path, tmp_path: Path) -> None:
    python = f"{os.environ['ROLLOUT_VLLM_VENV']}/bin/python"
    build = [python, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path)]
    subprocess.run([*build, str(repository / "plugins" / "vllm")], check=True)
    (built,) = tmp_path.glob("rollout_vllm-*.whl")
    with zipfile.ZipFile(built) as wheel:
        for name in SHARED:
            assert wheel.read(f"rollout_vllm/contract/{name}") == (repository / "renderers_adapter" / name).read_bytes()
        (points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        assert b"[vllm.endpoint_plugins]\nmmraw = rollout_vllm.plugin:MMRawPlugin" in wheel.read(points)
        (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
        assert b"Requires-Dist" not in wheel.read(metadata)
