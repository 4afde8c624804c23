"""Runs the stages of a Dockerfile in bare roots, each stage in a copy of the root of its base."""

import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.needs.package.bare_root import Command, FirstProcess, run_in_root, start_in_root
from tests.needs.package.dockerfile import Dockerfile, DockerfileError, Instruction, argument, substitute
from tests.needs.package.host_access import HostAccess

_STEP_TIMEOUT = 300
_RUN_TIMEOUT = 120
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_APT_SETTINGS = "etc/apt/apt.conf.d/99host"


@dataclass(frozen=True)
class BareImage:
    """The result of a stage: a root, and the settings with which a container starts."""

    root: Path
    variables: Mapping[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    user: str = "0:0"
    directory: str = "/"
    entrypoint: tuple[str, ...] = ()

    def run(
        self, *words: str, entrypoint: str | None = None, user: str | None = None, shared: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        return run_in_root(self.root, self._command(words, entrypoint, user, shared), _RUN_TIMEOUT)

    def start(self, *words: str, shared: Path) -> AbstractContextManager[FirstProcess]:
        return start_in_root(self.root, self._command(words, None, None, shared))

    def _command(self, words: Sequence[str], entrypoint: str | None, user: str | None, shared: Path | None) -> Command:
        variables = {**self.variables, "HOME": self._home(user or self.user)}
        return Command(
            (*((entrypoint,) if entrypoint else self.entrypoint), *words),
            user or self.user,
            str(shared) if shared else self.directory,
            variables,
            {str(shared): shared} if shared else {},
        )

    def _home(self, user: str) -> str:
        """Return the home directory of a user; a user without an entry gets "/", as in a container."""
        entries = [line.split(":") for line in (self.root / "etc/passwd").read_text().splitlines()]
        return next((entry[5] for entry in entries if entry[2] == user.partition(":")[0]), "/")


class ImageBuilder:
    """Builds each stage once, when it is needed. RUN uses the network of this machine.

    The RUN instructions of the stages in `not_run` are skipped.
    """

    def __init__(
        self,
        dockerfile: Dockerfile,
        *,
        base: Path,
        context: Path,
        roots: Path,
        access: HostAccess,
        not_run: Collection[str] = (),
    ) -> None:
        self._dockerfile, self._base, self._context, self._roots = dockerfile, base, context, roots
        self._access, self._not_run = access, not_run
        self._images: dict[str, BareImage] = {}

    def build(self, name: str) -> BareImage:
        """Return the image of a stage."""
        if name not in self._images:
            stage = self._dockerfile.stages[name]
            parent = self.build(stage.base) if stage.base in self._dockerfile.stages else BareImage(self._base)
            image = parent
            arguments: dict[str, str] = {}
            for instruction in stage.instructions:
                if instruction.keyword == "RUN" and name in self._not_run:
                    continue
                if image.root == parent.root and _writes_files(instruction, image):
                    image = replace(image, root=self._copy_root(parent.root, name))
                image = self._carry_out(instruction, image, arguments)
            self._images[name] = image
        return self._images[name]

    def _copy_root(self, root: Path, name: str) -> Path:
        subprocess.run(["cp", "-a", root, self._roots / name], check=True, timeout=_STEP_TIMEOUT)
        return self._roots / name

    def _carry_out(self, instruction: Instruction, image: BareImage, arguments: dict[str, str]) -> BareImage:
        known = {**arguments, **image.variables}
        match instruction.keyword:
            case "ARG":
                key, default = argument(instruction)
                value = default if default is not None else self._dockerfile.arguments.get(key)
                if value is not None:
                    arguments[key] = substitute(value, known)
            case "ENV":
                pairs = {key: substitute(value, known) for key, value in instruction.pairs().items()}
                return replace(image, variables={**image.variables, **pairs})
            case "WORKDIR":
                directory = str(Path(image.directory, instruction.arguments))
                (image.root / directory.lstrip("/")).mkdir(parents=True, exist_ok=True)
                return replace(image, directory=directory)
            case "USER":
                return replace(image, user=substitute(instruction.arguments, known))
            case "ENTRYPOINT":
                return replace(image, entrypoint=tuple(instruction.exec_form()))
            case "COPY":
                self._copy(instruction, image, known)
            case "RUN":
                self._run(instruction, image, known)
        return image

    def _copy(self, instruction: Instruction, image: BareImage, known: Mapping[str, str]) -> None:
        stage = instruction.flags.get("from")
        source_root = self.build(stage).root if stage else self._context
        *patterns, target = (substitute(word, known) for word in instruction.words())
        sources = [path for pattern in patterns for path in sorted(source_root.glob(pattern.lstrip("/")))]
        if len(sources) < len(patterns):
            raise DockerfileError(f"line {instruction.line}: {' '.join(patterns)} is not in the build context")
        there = image.root / str(Path(image.directory, target)).lstrip("/")
        into = target.endswith("/") or len(sources) > 1
        for source in sources:
            place = there / source.name if into and not source.is_dir() else there
            place.parent.mkdir(parents=True, exist_ok=True)
            # The files of an image belong to root.
            copy = ["cp", "-a", "--no-preserve=ownership", "--no-target-directory", str(source), str(place)]
            subprocess.run(copy, check=True, timeout=_STEP_TIMEOUT)

    def _run(self, instruction: Instruction, image: BareImage, variables: Mapping[str, str]) -> None:
        apt_settings = image.root / _APT_SETTINGS
        apt_settings.write_text(self._access.apt_settings)
        command = Command(
            ("/bin/sh", "-c", instruction.arguments),
            image.user,
            image.directory,
            {**variables, **self._access.variables, "HOME": "/root"},
            self._access.mounts,
        )
        try:
            done = run_in_root(image.root, command, _STEP_TIMEOUT)
        finally:
            apt_settings.unlink()
            shutil.rmtree(image.root / "run/host", ignore_errors=True)
        if done.returncode != 0:
            raise DockerfileError(
                f"line {instruction.line}: RUN exits with {done.returncode}\n{done.stdout}{done.stderr}"
            )


def _writes_files(instruction: Instruction, image: BareImage) -> bool:
    if instruction.keyword == "WORKDIR":
        return not (image.root / str(Path(image.directory, instruction.arguments)).lstrip("/")).exists()
    return instruction.keyword in ("RUN", "COPY")
