"""Builds the distribution from a clean tree, and installs it in fresh environments.

These tests are collected only with ROLLOUT_PACKAGE=1, because they install from a package index and take minutes.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.needs.package.installs import InstalledRollout, find_pythons, install_wheel

_PYTHONS: dict[str, Path] = {}
if os.environ.get("ROLLOUT_PACKAGE") == "1":
    _PYTHONS = find_pythons()
else:
    collect_ignore_glob = ["test_*.py"]


@dataclass(frozen=True)
class Distributions:
    """The built files, and the files that git tracks."""

    sdist: Path
    wheel: Path
    tracked_files: frozenset[str]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which Pythons were used; with -q, pytest would not print a header."""
    for version, path in _PYTHONS.items():
        terminalreporter.write_line(f"Python {version}: {path}")


@pytest.fixture(scope="session")
def distributions(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """The distributions of the last commit, without untracked files of the checkout."""
    built = tmp_path_factory.mktemp("dist")
    subprocess.run(["make", "--silent", "-C", str(repository), "dist", f"OUT={built}"], check=True, timeout=300)
    listing = subprocess.run(
        ["git", "-C", str(repository), "ls-tree", "-r", "--name-only", "HEAD"],
        check=True,
        capture_output=True,
        text=True,
    )
    (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    return Distributions(sdist, wheel, frozenset(listing.stdout.splitlines()))


@pytest.fixture(scope="session", params=["newest", "lowest"])
def resolution(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session", params=list(_PYTHONS))
def python(request: pytest.FixtureRequest) -> Path:
    return _PYTHONS[request.param]


@pytest.fixture(scope="session")
def installed(
    python: Path,
    resolution: str,
    distributions: Distributions,
    repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> InstalledRollout:
    """The wheel and a user's package, in an environment with this Python and these versions."""
    return install_wheel(
        tmp_path_factory.mktemp("installed"), python, distributions.wheel, resolution, hidden=repository
    )
