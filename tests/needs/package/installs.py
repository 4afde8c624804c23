"""Installs the wheel into fresh environments, and runs commands there for which the checkout is hidden."""

import email
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

UV = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}") or "uv"
USER_PACKAGE = Path(__file__).with_name("acme")
COMMAND_TIMEOUT = 120.0
_OLDEST = (3, 11)
_VERSION_SCRIPT = "import platform, sys; print(*sys.version_info[:2], platform.python_version())"


@cache
def find_pythons() -> dict[str, Path]:
    """Return each Python version from 3.11 on that PATH or pyenv has, oldest first."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    directories = [*map(Path, os.environ.get("PATH", "").split(os.pathsep)), *pyenv.glob("versions/*/bin")]
    candidates = [Path(sys.base_prefix, "bin", "python3")]
    candidates += [path for directory in directories for path in sorted(directory.glob("python3*"))]
    found: dict[tuple[tuple[int, ...], str], Path] = {}
    for path in candidates:
        if path.name.removeprefix("python3").removeprefix(".").isdigit() or path.name == "python3":
            answer = subprocess.run([path, "-c", _VERSION_SCRIPT], capture_output=True, text=True, timeout=60)
            if answer.returncode == 0:  # a shim of pyenv fails where its version is not selected
                major, minor, version = answer.stdout.split()
                if (int(major), int(minor)) >= _OLDEST:
                    found.setdefault(((int(major), int(minor)), version), path.resolve())
    return {version: path for (_, version), path in sorted(found.items())}


@dataclass(frozen=True)
class InstalledRollout:
    """An environment with the wheel.

    Attributes:
        path: the environment.
        work: an empty directory outside the checkout, in which commands run.
        hidden: the checkout, which is empty for the commands.
    """

    path: Path
    work: Path
    hidden: Path

    def command(self, *arguments: str | Path) -> list[str]:
        """Return the words of a command of this environment that runs with an empty checkout."""
        as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
        hide = 'mount -t tmpfs -o mode=755 none "$0" && exec "$@"'
        program, *rest = map(str, arguments)
        return [
            *("unshare", "--mount", *as_root, "sh", "-c", hide, str(self.hidden)),
            *(str(self.path / "bin" / program), *rest),
        ]

    def environment_variables(self) -> dict[str, str]:
        home = self.work / "home"
        home.mkdir(exist_ok=True)
        return {"PATH": f"{self.path}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(home)}

    def run(
        self, *arguments: str | Path, directory: Path | None = None, timeout: float = COMMAND_TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=directory or self.work,
            env=self.environment_variables(),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    @contextmanager
    def serve(self, *arguments: str | Path) -> Iterator[str]:
        """Run `rollout serve`, yield the URL of the engine, and stop it at the end."""
        command = self.command("rollout", "serve", *arguments)
        with subprocess.Popen(
            command, cwd=self.work, env=self.environment_variables(), stdout=subprocess.PIPE, text=True
        ) as engine:
            try:
                assert engine.stdout is not None
                yield next(match[0] for line in engine.stdout if (match := re.search(r"http://[\w.:]+", line)))
                engine.send_signal(signal.SIGTERM)
                engine.wait(COMMAND_TIMEOUT)
            finally:
                engine.kill()

    def install(self, *requirements: str | Path, options: Sequence[str] = ()) -> None:
        """Install more into the environment, and keep the installed versions."""
        kept = subprocess.run(
            [UV, "pip", "freeze", "--quiet", "--python", self.path, "--exclude-editable"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        constraints = self.work / "installed.txt"
        constraints.write_text("".join(line for line in kept.splitlines(True) if " @ " not in line))
        _install(self.path, "--constraint", constraints, *options, *requirements)


def install_wheel(
    directory: Path, python: Path, wheel: Path, resolution: str, *, hidden: Path, extras: Sequence[str] = ()
) -> InstalledRollout:
    """Install the wheel, with the newest or the lowest versions of its requirements, and a user's package."""
    environment, work = directory / "environment", directory / "work"
    work.mkdir()
    subprocess.run([UV, "venv", "--quiet", "--python", python, environment], check=True, timeout=COMMAND_TIMEOUT)
    wheel_with_extras = f"{wheel}[{','.join(extras)}]" if extras else wheel
    if resolution == "newest":
        _install(environment, wheel_with_extras)
    else:
        # The lowest versions of the direct requirements only.
        requirements = directory / "requirements.txt"
        requirements.write_text("\n".join(requirements_of(wheel, extras)))
        _install(
            environment, "--resolution", "lowest-direct", "--no-build", "--requirement", requirements, wheel_with_extras
        )
    _install(environment, "--no-deps", USER_PACKAGE)
    return InstalledRollout(environment, work, hidden)


def requirements_of(wheel: Path, extras: Sequence[str] = ()) -> list[str]:
    """Return the requirements in the metadata of a wheel, with these extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    wanted = []
    for text in metadata.get_all("Requires-Dist") or []:
        requirement = Requirement(text)
        environments = [{**default_environment(), "extra": extra} for extra in ("", *extras)]
        if requirement.marker is None or any(requirement.marker.evaluate(one) for one in environments):  # type: ignore[arg-type]
            wanted.append(text.partition(";")[0].strip())
    return wanted


def _install(environment: Path, *arguments: str | Path) -> None:
    command = [UV, "pip", "install", "--quiet", "--compile-bytecode", "--python", environment, *arguments]
    subprocess.run(command, check=True, timeout=300)
