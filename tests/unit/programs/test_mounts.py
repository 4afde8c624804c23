"""Which files are visible in a sandbox: those of the program, and nothing beside them."""

import sys
from pathlib import Path

import pytest

from rollout.programs.sandboxes.mounts import VisibleFiles


def write_program(path: Path, first_line: str = "#!/bin/sh") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{first_line}\n")
    path.chmod(0o755)
    return path


def visible(*programs: Path, hidden: tuple[Path, ...] = (), path: str = "/usr/bin:/bin") -> dict[Path, str | None]:
    files = VisibleFiles(hidden=hidden)
    for program in programs:
        files.add_program(str(program), {"PATH": path})
    return {place: target for place, target in files.visible(()) if not place.is_relative_to("/usr")}


def test_the_directory_of_a_program_is_visible(tmp_path: Path) -> None:
    program = write_program(tmp_path / "agent" / "run")
    assert tmp_path / "agent" in visible(program)


def test_a_program_in_a_home_is_visible_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    for program in (tmp_path / "home" / "me" / "agent", tmp_path / "home" / "agent"):
        found = visible(write_program(program))
        assert program in found
        assert program.parent not in found


def test_the_outermost_node_modules_is_visible(tmp_path: Path) -> None:
    program = write_program(tmp_path / "node_modules" / "a" / "node_modules" / "b" / "bin" / "b")
    found = visible(program)
    assert tmp_path / "node_modules" in found
    assert tmp_path not in found


def test_the_links_to_a_program_are_made_again(tmp_path: Path) -> None:
    program = write_program(tmp_path / "real" / "agent")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "agent").symlink_to("../middle/agent")
    (tmp_path / "middle").symlink_to("real")
    found = visible(tmp_path / "links" / "agent")
    assert found[tmp_path / "links" / "agent"] == "../middle/agent"
    assert found[tmp_path / "middle"] == "real"
    assert found[program.parent] is None
    assert tmp_path / "links" not in found


def test_a_virtual_environment_is_visible_if_its_python_is_the_program(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    assert tmp_path in visible(tmp_path / "bin" / "python")


def test_the_interpreter_of_a_script_is_visible(tmp_path: Path) -> None:
    interpreter = write_program(tmp_path / "tools" / "interpreter")
    script = write_program(tmp_path / "agent" / "run", f"#!{interpreter}")
    assert interpreter.parent in visible(script)
    by_name = write_program(tmp_path / "agent" / "run2", "#!/usr/bin/env -S interpreter")
    assert interpreter.parent in visible(by_name, path=f"{tmp_path}/tools:/usr/bin")


def test_scripts_that_name_each_other_are_no_endless_loop(tmp_path: Path) -> None:
    first = write_program(tmp_path / "a" / "first", f"#!{tmp_path}/b/second")
    write_program(tmp_path / "b" / "second", f"#!{first}")
    assert tmp_path / "b" in visible(first)


@pytest.mark.parametrize("name", ["agent", "directory/agent"])
def test_a_link_that_a_program_could_write_shows_nothing(tmp_path: Path, name: str) -> None:
    secret = write_program(tmp_path / "private" / "agent")
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "agent").symlink_to(secret)
    (workspace / "directory").symlink_to(secret.parent)
    assert secret.parent in visible(workspace / name)
    assert secret.parent not in visible(workspace / name, hidden=(workspace,))


def test_what_is_in_a_visible_directory_is_not_mounted_again(tmp_path: Path) -> None:
    (tmp_path / "outer" / "replaced" / "inner").mkdir(parents=True)
    files = VisibleFiles()
    for directory in ("outer", "outer/replaced/inner"):
        files.add(tmp_path / directory)
    assert [place for place, _ in files.visible(())] == [tmp_path / "outer"]
    replaced = [tmp_path / "outer" / "replaced"]
    assert [place for place, _ in files.visible(replaced)] == [tmp_path / "outer", tmp_path / "outer/replaced/inner"]
