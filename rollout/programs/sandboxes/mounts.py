"""Chooses which files of this machine are visible in a sandbox, read-only: the system, Python, and the program itself.

Nothing else is visible: no home directories, no keys of SSH, no sockets of services.
"""

import os
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SYSTEM_DIRECTORIES = ("/usr", "/opt", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SYSTEM_FILES = (
    *(
        "ld.so.cache",
        "ld.so.conf",
        "ld.so.conf.d",
        "alternatives",
        "os-release",
        "debian_version",
        "localtime",
        "timezone",
    ),
    *("passwd", "group", "nsswitch.conf", "hosts", "host.conf", "protocols", "services", "gai.conf", "mime.types"),
    *("ssl/certs", "ssl/openssl.cnf", "ca-certificates", "ca-certificates.conf", "pki/ca-trust", "pki/tls/certs"),
    *("pki/tls/cert.pem", "pki/tls/openssl.cnf", "crypto-policies", "fonts", "locale.conf", "default/locale", "magic"),
    *("profile", "profile.d", "bash.bashrc", "inputrc", "terminfo", "perl", "python3*", "java-*"),
)
"""Patterns of the files in /etc that programs need, without /etc/shadow, private keys and the settings of services."""
_SHARED_DIRECTORIES = ("/etc", "/media", "/mnt", "/root", "/run", "/srv", "/tmp", "/var", "/var/tmp")  # noqa: S108
"""Directories from which only a single file is made visible, because unrelated files are beside it."""
_MAX_LINKS = 40


@dataclass(slots=True)
class VisibleFiles:
    """Files and directories that are visible at the paths that they have outside.

    Attributes:
        paths: files and directories without symbolic links in their paths.
        links: the symbolic links that lead to them, with their targets.
        hidden: directories whose files are never made visible, because a program can write links into them.
    """

    hidden: tuple[Path, ...] = ()
    paths: set[Path] = field(default_factory=set)
    links: dict[Path, str] = field(default_factory=dict)
    _programs: set[str] = field(default_factory=set)

    def add(self, path: str | Path) -> Path | None:
        """Make a file or directory visible, and the links that lead to it; return its real path, or None if missing."""
        real = self._add_links(path)
        if real is None or not real.exists():
            return None
        self.paths.add(real)
        return real

    def add_system(self) -> None:
        """Make the system visible, and the Python that runs us with its installed packages."""
        for path in SYSTEM_DIRECTORIES:
            self.add(path)
        for pattern in SYSTEM_FILES:
            for file in Path("/etc").glob(pattern):
                self.add(file)
        packages = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
        for path in (sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix, *packages):
            self.add(path)
        self.add_program(sys.executable, {})

    def add_program(self, name: str, environ: Mapping[str, str]) -> None:
        """Make a program visible with its interpreter, and with the files of its virtual environment or node package.

        A name without a directory is looked up in `PATH`. Relative paths belong to the working directory, which is
        visible anyway.
        """
        found = self._find(name, environ.get("PATH", os.defpath))
        if found is None or found in self._programs:
            return
        self._programs.add(found)
        directory, real = self._add_links(os.path.dirname(found)), self._add_links(found)
        if directory is None or real is None or not real.is_file():
            return
        self.paths.add(_installation(real))
        for prefix in {directory.parent, real.parent.parent}:
            self._add_virtual_environment(prefix)
        for interpreter in _interpreters(real):
            self.add_program(interpreter, environ)

    def _find(self, name: str, search_path: str) -> str | None:
        if "/" in name:
            directories, name = [os.path.dirname(name)], os.path.basename(name)
        else:
            directories = search_path.split(os.pathsep)
        visible = [path for path in directories if path.startswith("/") and not self._is_hidden(Path(path))]
        return shutil.which(name, path=os.pathsep.join(visible)) if visible else None

    def _is_hidden(self, path: Path) -> bool:
        return any(path.is_relative_to(directory) for directory in self.hidden)

    def _add_links(self, path: str | Path) -> Path | None:
        """Record the symbolic links in a path, and return the path without them; None if it leads to a hidden place."""
        parts = list(reversed(Path(os.path.abspath(path)).parts[1:]))
        real, links = Path("/"), 0
        while parts:
            part = parts.pop()
            if part == "..":
                real = real.parent
                continue
            step = real / part
            if self._is_hidden(step):
                return None
            if not step.is_symlink():
                real = step
                continue
            links += 1
            if links > _MAX_LINKS:
                return None
            target = os.readlink(step)
            self.links[step] = target
            parts += reversed(Path(target).parts[1:] if target.startswith("/") else Path(target).parts)
            real = Path("/") if target.startswith("/") else real
        return real

    def _add_virtual_environment(self, prefix: Path) -> None:
        configuration = prefix / "pyvenv.cfg"
        if not configuration.is_file():
            return
        self.paths.add(prefix)
        for line in configuration.read_text(errors="replace").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "home" and (real := self._add_links(value.strip())) is not None:
                self.paths.add(_installation(real / "python3"))

    def visible(self, replaced: Collection[Path]) -> Iterator[tuple[Path, str | None]]:
        """Yield each path to mount, with None, and each link to make, with its target.

        A path inside a directory that is mounted is left out, unless a directory between them is replaced.

        Args:
            replaced: the directories in whose place the sandbox has others, such as `/tmp`.
        """
        mounted: set[Path] = set()

        def is_visible(path: Path) -> bool:
            nearest = next((place for place in (path, *path.parents) if place in mounted or place in replaced), None)
            return nearest in mounted

        for path in sorted(self.paths, key=lambda path: len(path.parts)):
            if not is_visible(path):
                mounted.add(path)
                yield path, None
        for link, target in self.links.items():
            if not is_visible(link):
                yield link, target


def _installation(program: Path) -> Path:
    """Return the directory to which an executable file belongs, or the file itself if unrelated files are beside it."""
    for parent in reversed(program.parents):
        if parent.name == "node_modules":
            return parent
    prefix = program.parent.parent
    if any(prefix.glob("lib/python3*/os.py")) and not _has_unrelated_files(prefix):
        return prefix
    return program if _has_unrelated_files(program.parent) else program.parent


def _has_unrelated_files(directory: Path) -> bool:
    """Whether a directory is a home, has homes inside, or is shared by all programs."""
    is_home = directory.parent == Path("/home") or Path.home().is_relative_to(directory)
    return is_home or str(directory) in _SHARED_DIRECTORIES


def _interpreters(program: Path) -> list[str]:
    """Return the programs that the first line of a script names."""
    with program.open("rb") as file:
        first_line = file.readline(512)
    if not first_line.startswith(b"#!"):
        return []
    words = os.fsdecode(first_line[2:]).split()
    if words and os.path.basename(words[0]) == "env":
        return [words[0], *(word for word in words[1:] if not word.startswith("-") and "=" not in word)][:2]
    return words[:1]
