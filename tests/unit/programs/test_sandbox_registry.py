"""Sandboxes are found by their kind, and their options are checked."""

from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

from rollout.programs.sandboxes import registry
from rollout.programs.sandboxes.base import Sandbox, SandboxedCommand, SandboxOptions, WrappedCommand
from rollout.programs.sandboxes.none import NoSandbox
from rollout.programs.sandboxes.registry import find_sandbox, open_sandbox, parse_sandbox


class JailOptions(SandboxOptions):
    level: int = 1
    name: str


class JailSandbox(Sandbox):
    """A sandbox of another distribution."""

    Options = JailOptions

    def check(self) -> str:
        return "jail"

    def find_program(self, name: str) -> str | None:
        return name

    def wrap(self, command: SandboxedCommand) -> WrappedCommand:
        return WrappedCommand(argv=("jail", *command.argv), environ=command.environ)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution with a sandbox, a broken one, and one with the name of a built-in sandbox."""
    points = EntryPoints(
        EntryPoint(name, value, registry.ENTRY_POINT_GROUP)
        for name, value in [
            ("jail", f"{__name__}:JailSandbox"),
            ("dumps", "json:dumps"),
            ("gone", "a_module_that_is_gone:Sandbox"),
            ("none", f"{__name__}:JailSandbox"),
        ]
    )
    monkeypatch.setattr(registry, "entry_points", points.select)


@pytest.mark.parametrize("value", ["none", {"kind": "none"}, SandboxOptions(kind="none")])
def test_a_string_is_the_kind_alone(value: Any) -> None:
    options = parse_sandbox(value)
    assert options == SandboxOptions(kind="none")
    assert isinstance(open_sandbox(options), NoSandbox)


@pytest.mark.usefixtures("installed")
def test_an_entry_point_adds_a_sandbox_with_options_of_its_own() -> None:
    sandbox = open_sandbox(parse_sandbox({"kind": "jail", "level": 3, "name": "a"}))
    assert isinstance(sandbox, JailSandbox)
    assert sandbox.options == JailOptions(kind="jail", level=3, name="a")


@pytest.mark.usefixtures("installed")
def test_an_entry_point_does_not_replace_a_built_in_sandbox() -> None:
    assert find_sandbox("none") is NoSandbox


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("jali", "unknown sandbox 'jali'; did you mean 'jail'? the known sandboxes are jail, "),
        ("xyzzy", "unknown sandbox 'xyzzy'; the known sandboxes are "),
        ("dumps", "json:dumps of the sandbox 'dumps' is not a subclass of rollout.programs.sandboxes.base.Sandbox"),
        ("gone", "the sandbox 'gone' cannot be imported from a_module_that_is_gone:Sandbox"),
        ({"kind": "jail", "name": "a", "levle": 3}, "the sandbox 'jail': unknown key 'levle'; did you mean 'level'?"),
        ({"kind": "none", "image": "a"}, "the sandbox 'none': unknown key 'image'; its keys are kind"),
        ({"kind": "jail"}, "the sandbox 'jail': the key 'name' is required"),
        ({"kind": "jail", "name": "a", "level": "high"}, "the sandbox 'jail': level: Input should be a valid integer"),
        ({"level": 3}, "the key 'kind' must be the name of a sandbox; the known sandboxes are "),
        (3, "expected the name of a sandbox or a mapping with the key 'kind'"),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_be_right(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match="sandbox") as refused:
        parse_sandbox(value)
    assert message in str(refused.value)


@pytest.mark.usefixtures("installed")
def test_the_error_for_an_unknown_sandbox_names_all_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown") as refused:
        find_sandbox("nothing")
    listed = str(refused.value).partition("are ")[2].partition(".")[0].split(", ")
    assert listed[0] == "none"
    assert sorted(listed) == ["bwrap", "docker", "dumps", "gone", "jail", "none"]
