"""Limits the memory and the processes of a program with a cgroup, and finds its processes again.

    place = find_place()        # where this process may make cgroups; None if the machine does not let it
    group = ControlGroup(place, "rollout-program-x1")
    group.create(memory_bytes=1 << 30, processes=64)
    group.add_this_process()    # in the child, before exec
    ...
    group.remove()

Version 1 of cgroups has one tree of directories for memory and one for processes; version 2 has one for both. This
module imports only the standard library.
"""

import os
import time
from collections.abc import Iterator

_REMOVE_SECONDS = 5.0
"""The kernel needs a moment until it lets us remove the cgroup of killed processes."""
_PAUSE_SECONDS = 0.005
_CONTROLLERS = ("memory", "pids")
_HOW_TO_CHANGE = (
    "start it as root, or with `systemd-run --user --scope -p Delegate=yes`, or in a container that may write to "
    "/sys/fs/cgroup"
)

Place = tuple[int, dict[str, str]]
"""The version of cgroups, and for `memory` and `pids` the directory in which a process may make cgroups."""


class ControlGroup:
    """The cgroup of one program.

    Attributes:
        name: the name of its directory.
    """

    def __init__(self, place: Place, name: str) -> None:
        self.name = name
        self._version, parents = place
        self._directories = {controller: os.path.join(parent, name) for controller, parent in parents.items()}

    def create(self, memory_bytes: int | None, processes: int | None) -> None:
        """Make the directories, and set the limits that the machine has. Raise OSError if that fails."""
        for directory in set(self._directories.values()):
            os.makedirs(directory, exist_ok=True)
        if memory_bytes is not None:
            self._set_memory_limit(str(memory_bytes))
        if processes is not None:
            self._write("pids", "pids.max", str(processes))

    def add_this_process(self) -> None:
        """Move the process that calls this into the cgroup. Its children are born there."""
        for directory in set(self._directories.values()):
            _write_file(os.path.join(directory, "cgroup.procs"), "0")

    def pids(self) -> set[int]:
        """Return the pids of all its processes."""
        return {
            int(line)
            for directory in set(self._directories.values())
            for below in _walk(directory)
            for line in _read_lines(os.path.join(below, "cgroup.procs"))
        }

    def refuse_processes(self) -> bool:
        """Let no process of the cgroup fork again; return whether the machine can do that."""
        return self._write_if_there("pids", "pids.max", "0")

    def kill(self) -> None:
        """Kill all its processes at once, where the kernel can do that."""
        if self._version == 2:
            self._write_if_there(next(iter(self._directories)), "cgroup.kill", "1")

    def memory_kills(self) -> int:
        """Return how many of its processes were killed because of the memory limit."""
        return self._read_count("memory", "memory.oom_control" if self._version == 1 else "memory.events", "oom_kill")

    def refused_forks(self) -> int:
        """Return how often a process of it could not fork because of the limit."""
        return self._read_count("pids", "pids.events", "max")

    def remove(self) -> bool:
        """Remove the directories; return whether they are gone."""
        deadline = time.monotonic() + _REMOVE_SECONDS
        return all(_remove_tree(directory, deadline) for directory in set(self._directories.values()))

    def _set_memory_limit(self, limit: str) -> None:
        if self._version == 1:
            self._write("memory", "memory.limit_in_bytes", limit)
            self._write_if_there("memory", "memory.memsw.limit_in_bytes", limit)  # memory and swap together
        else:
            self._write("memory", "memory.max", limit)
            self._write_if_there("memory", "memory.swap.max", "0")
            self._write_if_there("memory", "memory.oom.group", "1")

    def _write(self, controller: str, file: str, text: str) -> None:
        if controller in self._directories:
            _write_file(os.path.join(self._directories[controller], file), text)

    def _write_if_there(self, controller: str, file: str, text: str) -> bool:
        try:
            self._write(controller, file, text)
        except OSError:
            return False
        return controller in self._directories

    def _read_count(self, controller: str, file: str, key: str) -> int:
        if controller in self._directories:
            for line in _read_lines(os.path.join(self._directories[controller], file)):
                name, _, count = line.partition(" ")
                if name == key:
                    return int(count)
        return 0


def find_place(root: str = "/") -> Place | None:
    """Return where this process may make cgroups that limit memory or processes, or None.

    Args:
        root: the directory with `proc`; tests have another one.
    """
    places = dict(_find_version_1(root))
    if places:
        return 1, places
    places = _find_version_2(root)
    return (2, places) if places else None


def find_groups(name: str, root: str = "/") -> list[ControlGroup]:
    """Return the cgroups with this name, wherever they are, such as those that a dead worker has left behind."""
    found: dict[int, dict[str, str]] = {}
    for version, controllers, mount, _ in _read_mounts(root):
        for directory in _walk(mount):
            if os.path.basename(directory) == name:
                for controller in controllers if version == 1 else _CONTROLLERS:
                    found.setdefault(version, {})[controller] = os.path.dirname(directory)
    return [ControlGroup(place, name) for place in found.items()]


def describe_limits(root: str = "/") -> str:
    """Return one or two sentences that say what limits the memory and the processes of programs on this machine."""
    place = find_place(root)
    if place is None:
        return (
            "nothing limits the memory and the processes of programs, because this process may not make cgroups here. "
            f"To change that, {_HOW_TO_CHANGE}."
        )
    version, parents = place
    limited = " and ".join(f"{_NAMES[controller]} ({parents[controller]})" for controller in parents)
    missing = [_NAMES[controller] for controller in _CONTROLLERS if controller not in parents]
    if not missing:
        return f"cgroups (version {version}) limit {limited} of programs."
    return (
        f"cgroups (version {version}) limit {limited} of programs; nothing limits {missing[0]}. "
        f"To change that, {_HOW_TO_CHANGE}."
    )


_NAMES = {"memory": "the memory", "pids": "the processes"}


def _find_version_1(root: str) -> Iterator[tuple[str, str]]:
    for version, controllers, mount, own in _read_mounts(root):
        if version == 1 and _can_make_groups(own if os.path.isdir(own) else mount):
            yield from ((controller, own if os.path.isdir(own) else mount) for controller in controllers)


def _find_version_2(root: str) -> dict[str, str]:
    """Return the directories of version 2: our own cgroup, or its parent.

    A cgroup with processes can give no limits to cgroups below it. We are in our own one, so usually only its parent
    can, if it is delegated to us.
    """
    for version, _, mount, own in _read_mounts(root):
        if version != 2:
            continue
        for directory in (own, os.path.dirname(own)):
            if os.path.commonpath((directory, mount)) != mount or not _can_make_groups(directory):
                continue
            places = {controller: directory for controller in _CONTROLLERS if _has_controller(directory, controller)}
            if places:
                return places
    return {}


def _has_controller(directory: str, controller: str) -> bool:
    """Whether the cgroups in a directory have a controller; switch it on if the kernel accepts that."""
    control = os.path.join(directory, "cgroup.subtree_control")
    if controller not in " ".join(_read_lines(control)).split():
        try:
            _write_file(control, f"+{controller}")
        except OSError:
            return False
    return controller in " ".join(_read_lines(control)).split()


def _can_make_groups(directory: str) -> bool:
    probe = os.path.join(directory, f"rollout-probe-{os.getpid()}-{time.monotonic_ns()}")
    try:
        os.mkdir(probe)
        os.rmdir(probe)
    except OSError:
        return False
    return True


def _read_mounts(root: str) -> Iterator[tuple[int, tuple[str, ...], str, str]]:
    """Yield for each tree of cgroups the version, the controllers that we use, where it is, and our own cgroup."""
    own_paths = {}
    for line in _read_lines(os.path.join(root, "proc/self/cgroup")):
        _, names, path = line.split(":", 2)
        own_paths.update(dict.fromkeys(names.split(","), path))
    for line in _read_lines(os.path.join(root, "proc/self/mountinfo")):
        fields, _, kind = line.partition(" - ")
        _, _, _, top, mount, *_ = fields.split(" ")
        kind_fields = kind.split(" ")
        controllers = tuple(name for name in kind_fields[-1].split(",") if name in _CONTROLLERS)
        if kind_fields[0] == "cgroup2" and "" in own_paths:
            yield 2, (), mount, _below(mount, top, own_paths[""])
        elif kind_fields[0] == "cgroup" and controllers and controllers[0] in own_paths:
            yield 1, controllers, mount, _below(mount, top, own_paths[controllers[0]])


def _below(mount: str, top: str, path: str) -> str:
    """Return where a cgroup is, if the directory `top` of the tree is mounted at `mount`."""
    relative = os.path.relpath(path, top)
    return mount if relative == "." or relative.startswith("..") else os.path.join(mount, relative)


def _walk(directory: str) -> Iterator[str]:
    for path, _, _ in os.walk(directory, topdown=False):
        yield path


def _remove_tree(directory: str, deadline: float) -> bool:
    while os.path.isdir(directory):
        try:
            for path in _walk(directory):
                os.rmdir(path)
        except FileNotFoundError:
            continue
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE_SECONDS)
    return True


def _read_lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []


def _write_file(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
