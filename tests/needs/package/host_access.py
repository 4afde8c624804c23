"""How this machine reaches Debian and the package index, so that a command in a bare root can do the same.

This passes on mirrors, proxies, certificates and credentials, but no version.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "ftp_proxy", "all_proxy")
_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_PIP_KEYS = ("index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "cert", "client-cert", "proxy")
_PIP_KEYS_WITHOUT_PATHS = ("timeout", "default-timeout", "retries")
_MOUNT_POINT = "/run/host"


@dataclass(frozen=True, slots=True)
class HostAccess:
    """Variables for the commands in a root, files to mount in it (there, here), and the mirror of Debian."""

    variables: dict[str, str]
    mounts: dict[str, Path]
    mirror: str | None
    """None means the default of debootstrap."""
    apt_settings: str


def find_host_access() -> HostAccess:
    """Return the settings of pip, apt and the environment of this process."""
    variables = {name: value for name, value in os.environ.items() if name.lower() in _PROXIES}
    mounts: dict[str, Path] = {}
    settings = {key: os.environ[key] for key in _CERTIFICATES if key in os.environ} | pip_settings()
    for key, value in settings.items():
        variables[key] = " ".join(_mounted(word, mounts) for word in value.split())
    apt = _output("apt-config", "dump", "Acquire")
    proxy = re.search(r'^Acquire::http::Proxy "(.+)";$', apt, re.MULTILINE | re.IGNORECASE)
    if proxy and proxy[1] != "DIRECT":
        variables.setdefault("http_proxy", proxy[1])
    return HostAccess(variables, mounts, _mirror(), apt)


def pip_settings() -> dict[str, str]:
    """Return how pip reaches its index, as environment variables of pip."""
    listed = _output(sys.executable, "-m", "pip", "config", "list")
    lines = re.findall(r"^(:env:|global|install)\.([\w-]+)=(.*)$", listed, re.MULTILINE)
    lines.sort(key=lambda line: ("global", "install", ":env:").index(line[0]))  # the last one wins
    found = {}
    for _, key, quoted in lines:
        if key in _PIP_KEYS + _PIP_KEYS_WITHOUT_PATHS:
            value = quoted[1:-1].encode().decode("unicode_escape") if quoted[:1] in "'\"" else quoted
            found[f"PIP_{key.upper().replace('-', '_')}"] = value
    return found


def _mounted(word: str, mounts: dict[str, Path]) -> str:
    """Return a word as it is; if it is a path or a file:// URL, mount the file and return its place in the root."""
    path = Path(word.removeprefix("file://"))
    if not (path.is_absolute() and path.exists()):
        return word
    is_index = word.startswith("file://")
    source = path.parent if is_index else path  # the files of an index are in the same directory
    there = f"{_MOUNT_POINT}{source}"
    mounts[there] = source
    return f"file://{there}/{path.name}" if is_index else there


def _mirror() -> str | None:
    """Return the mirror of this machine, if it is a Debian."""
    listed = _output("apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages")
    for line in listed.splitlines():
        origin, _, uri = line.partition(" ")
        if origin == "Debian" and "security" not in uri:
            return uri
    return None


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
