"""The built distribution: its files, its requirements, and whether each extra can be resolved."""

import ast
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.needs.package.conftest import Distributions
from tests.needs.package.installs import UV, requirements_of

_PACKAGES = ("rollout", "transports", "renderers_adapter")
_EXTRAS = ("redis", "zmq", "trainer", "trl", "vllm", "ray", "parquet", "datasets", "all")
_IMPORTED_AS = {"pillow": "PIL", "prometheus-client": "prometheus_client", "pyyaml": "yaml", "pyzmq": "zmq"}
_INSTALLED_BY_OTHERS = {"pydantic_core"}  # pydantic requires one exact version of it
_INSTALLED_BY_USER = {"pytest"}  # for the helpers in rollout and transports for a user's tests


def test_the_sdist_holds_tracked_files_only(distributions: Distributions) -> None:
    with tarfile.open(distributions.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    files = names - {"PKG-INFO"}
    packaged = {name for name in distributions.tracked_files if name.split("/")[0] in _PACKAGES and name[-1] != "/"}
    assert packaged <= files <= distributions.tracked_files


def test_an_untracked_file_of_the_checkout_is_not_in_the_sdist(
    distributions: Distributions, repository: Path, tmp_path: Path
) -> None:
    with tarfile.open(distributions.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    (tree / "notes.txt").write_text("mine")
    (tree / ".venv").mkdir()
    (tree / ".venv" / "key.txt").write_text("mine")
    subprocess.run([UV, "build", "--quiet", "--sdist", "--out-dir", tmp_path / "dist", tree], check=True, timeout=300)
    (built,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = archive.getnames()
    assert not [name for name in names if name.endswith(("notes.txt", "key.txt"))]


def test_the_wheel_holds_every_module_of_the_packages(distributions: Distributions) -> None:
    with zipfile.ZipFile(distributions.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    tracked = {name for name in distributions.tracked_files if name.split("/")[0] in _PACKAGES and name[-1] != "/"}
    assert names == tracked


def test_every_imported_package_is_required(distributions: Distributions, tmp_path: Path) -> None:
    with zipfile.ZipFile(distributions.wheel) as archive:
        archive.extractall(tmp_path)
    required = {Requirement(text).name for text in requirements_of(distributions.wheel, _EXTRAS)}
    known = {_IMPORTED_AS.get(name, name.replace("-", "_")) for name in required}
    imported = {
        name.partition(".")[0]
        for path in tmp_path.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_bytes()))
        for name in _imported_names(node)
    }
    assert (
        imported - set(_PACKAGES) - sys.stdlib_module_names - known - _INSTALLED_BY_OTHERS - _INSTALLED_BY_USER == set()
    )


def _imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []


@pytest.mark.parametrize("resolution", ["highest", "lowest-direct"])
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("extra", ["all", "trl", "vllm"])
def test_an_extra_can_be_resolved(
    distributions: Distributions, extra: str, version: str, resolution: str, tmp_path: Path
) -> None:
    requirements = tmp_path / "requirements.in"
    requirements.write_text("\n".join([*requirements_of(distributions.wheel, [extra]), str(distributions.wheel)]))
    options = ("--no-build", "--resolution", resolution, "--python-version", version)
    resolved = subprocess.run(
        [UV, "pip", "compile", "--quiet", *options, requirements], capture_output=True, text=True, timeout=120
    )
    assert resolved.returncode == 0, resolved.stderr


def test_the_extra_all_does_not_contain_vllm(distributions: Distributions) -> None:
    names = {Requirement(text).name for text in requirements_of(distributions.wheel, ["all"])}
    assert "torch" in names
    assert "vllm" not in names
