"""Cgroups are found, limited and removed, on machines of version 1, of version 2, and on those that allow none.

Version 1 is tested on this machine, if it has it. Version 2 is tested on a directory tree that imitates its files: it
shows which files we read and write, and not what a kernel does with them.
"""

import os
import subprocess
from pathlib import Path

import pytest

from rollout.programs.cgroups import ControlGroup, describe_limits, find_groups, find_place
from tests.unit.programs.running import can_limit, new_mark

NEEDS_CGROUPS = pytest.mark.skipif(not can_limit("pids"), reason="this process may not make cgroups here")


@NEEDS_CGROUPS
def test_a_cgroup_has_its_processes_and_their_children_until_it_is_removed() -> None:
    place = find_place()
    assert place is not None
    group = ControlGroup(place, f"rollout-test-{new_mark()}")
    group.create(memory_bytes=1 << 30, processes=10)
    process = subprocess.Popen(["/bin/sh", "-c", "sleep 1000 & wait"], preexec_fn=group.add_this_process)
    while len(group.pids()) < 2:
        assert process.poll() is None
    assert process.pid in group.pids()
    assert [found.pids() for found in find_groups(group.name)] == [group.pids()]
    for pid in group.pids():
        os.kill(pid, 9)
    process.wait()
    assert group.remove()
    assert find_groups(group.name) == []


@NEEDS_CGROUPS
def test_a_cgroup_that_cannot_be_removed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.programs.cgroups._REMOVE_SECONDS", 0.1)
    place = find_place()
    assert place is not None
    group = ControlGroup(place, f"rollout-test-{new_mark()}")
    group.create(None, None)
    process = subprocess.Popen(["sleep", "1000"], preexec_fn=group.add_this_process)
    assert not group.remove()
    process.kill()
    process.wait()
    assert group.remove()


@NEEDS_CGROUPS
def test_what_limits_programs_is_described_for_this_machine() -> None:
    assert "limit" in describe_limits()
    assert "cgroups (version" in describe_limits()


class ImitatedMachine:
    """A directory tree with the files of cgroups of version 2."""

    def __init__(self, root: Path, own: str) -> None:
        self.root, self.mount = root, root / "sys/fs/cgroup"
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(f"0::{own}\n")
        (root / "proc/self/mountinfo").write_text(f"30 23 0:26 / {self.mount} rw - cgroup2 cgroup2 rw\n")
        self.own = self.mount / own.strip("/")
        self.own.mkdir(parents=True)

    def enable(self, directory: Path, controllers: str) -> None:
        (directory / "cgroup.subtree_control").write_text(f"{controllers}\n")

    def find(self) -> tuple[int, dict[str, str]] | None:
        return find_place(f"{self.root}")


def test_version_2_uses_the_own_cgroup_if_it_gives_limits_to_those_below(tmp_path: Path) -> None:
    machine = ImitatedMachine(tmp_path, "/worker")
    machine.enable(machine.own, "cpu memory pids")
    assert machine.find() == (2, {"memory": str(machine.own), "pids": str(machine.own)})


def test_version_2_uses_the_parent_if_the_own_cgroup_has_processes(tmp_path: Path) -> None:
    machine = ImitatedMachine(tmp_path, "/slice/worker.scope")
    (machine.own / "cgroup.subtree_control").mkdir()  # a file that refuses to be written
    machine.enable(machine.own.parent, "memory pids")
    assert machine.find() == (2, {"memory": str(machine.own.parent), "pids": str(machine.own.parent)})


def test_version_2_without_a_controller_says_what_is_not_limited(tmp_path: Path) -> None:
    machine = ImitatedMachine(tmp_path, "/slice/worker.scope")
    (machine.own / "cgroup.subtree_control").mkdir()
    (machine.own.parent / "cgroup.subtree_control").mkdir()
    assert machine.find() is None
    assert "nothing limits the memory and the processes" in describe_limits(str(tmp_path))
    assert "Delegate=yes" in describe_limits(str(tmp_path))


def test_version_2_writes_the_limits_and_reads_what_they_did(tmp_path: Path) -> None:
    group = ControlGroup((2, {"memory": str(tmp_path), "pids": str(tmp_path)}), "group")
    group.create(memory_bytes=1000, processes=5)
    files = {"memory.max": "1000", "memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "5"}
    assert {path.name: path.read_text() for path in (tmp_path / "group").iterdir()} == files
    (tmp_path / "group/memory.events").write_text("low 0\nhigh 0\nmax 9\noom 2\noom_kill 3\noom_group_kill 1\n")
    (tmp_path / "group/pids.events").write_text("max 4\n")
    (tmp_path / "group/cgroup.procs").write_text("12\n34\n")
    assert (group.memory_kills(), group.refused_forks(), group.pids()) == (3, 4, {12, 34})
    group.kill()
    assert (tmp_path / "group/cgroup.kill").read_text() == "1"
    assert group.refuse_processes()
    assert (tmp_path / "group/pids.max").read_text() == "0"


def test_a_container_that_sees_only_a_part_of_the_tree_finds_its_own_cgroup(tmp_path: Path) -> None:
    mount = tmp_path / "sys/fs/cgroup/pids"
    (mount / "inner").mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("3:pids:/docker/abc/inner\n2:cpu:/\n")
    (tmp_path / "proc/self/mountinfo").write_text(f"39 31 0:36 /docker/abc {mount} rw - cgroup cgroup rw,pids\n")
    assert find_place(str(tmp_path)) == (1, {"pids": str(mount / "inner")})
    assert "nothing limits the memory" in describe_limits(str(tmp_path))


def test_a_machine_without_proc_has_no_cgroups(tmp_path: Path) -> None:
    assert find_place(str(tmp_path)) is None
    assert find_groups("any", str(tmp_path)) == []
