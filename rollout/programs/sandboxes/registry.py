"""Finds a sandbox by the value of `environment.sandbox` in the YAML: a built-in one, or one of an installed package."""

import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, cast

from pydantic import ValidationError

from rollout.programs.sandboxes.base import Sandbox, SandboxOptions

ENTRY_POINT_GROUP = "rollout.sandboxes"

_BUILT_IN = {
    "none": "rollout.programs.sandboxes.none:NoSandbox",
    "bwrap": "rollout.programs.sandboxes.bwrap:BwrapSandbox",
    "docker": "rollout.programs.sandboxes.docker:DockerSandbox",
}


def find_sandbox(kind: str) -> type[Sandbox]:
    """Return the class of a sandbox. An entry point does not replace a built-in sandbox of the same name.

    Raises:
        ValueError: no sandbox has this name, or the entry point does not name a subclass of `Sandbox`.
    """
    if kind not in _BUILT_IN:
        return _load_entry_point(kind)
    module, _, name = _BUILT_IN[kind].partition(":")
    return cast(type[Sandbox], getattr(import_module(module), name))


def parse_sandbox(value: str | Mapping[str, Any] | SandboxOptions) -> SandboxOptions:
    """Return the options of a sandbox. A string is the kind alone.

    Raises:
        ValueError: the kind is unknown, or an option is unknown, missing or wrong.
    """
    if isinstance(value, SandboxOptions):
        return value
    options = {"kind": value} if isinstance(value, str) else value
    if not isinstance(options, Mapping):
        raise ValueError(f"expected the name of a sandbox or a mapping with the key 'kind'; {_known_kinds()}")
    kind = options.get("kind")
    if not isinstance(kind, str):
        raise ValueError(f"the key 'kind' must be the name of a sandbox; {_known_kinds()}")
    options_class = find_sandbox(kind).Options
    try:
        return options_class.model_validate(options)
    except ValidationError as error:
        names = list(options_class.model_fields)
        problems = "; ".join(_describe_problem(problem, names) for problem in error.errors())
        raise ValueError(f"the sandbox {kind!r}: {problems}") from None


def open_sandbox(options: SandboxOptions) -> Sandbox:
    """Return the sandbox for its options. It is not checked; `Sandbox.check` does that."""
    return find_sandbox(options.kind)(options)


def _load_entry_point(kind: str) -> type[Sandbox]:
    for entry_point in entry_points(group=ENTRY_POINT_GROUP, name=kind):
        try:
            loaded = entry_point.load()
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"the sandbox {kind!r} cannot be imported from {entry_point.value}: {error}; repair its package"
            ) from error
        if not (isinstance(loaded, type) and issubclass(loaded, Sandbox)):
            raise ValueError(
                f"the entry point {entry_point.value} of the sandbox {kind!r} is not a subclass of "
                f"{Sandbox.__module__}.{Sandbox.__name__}; repair its package"
            )
        return loaded
    matches = difflib.get_close_matches(kind, _kinds(), n=1, cutoff=0.5)
    hint = f"did you mean {matches[0]!r}? " if matches else ""
    raise ValueError(
        f"unknown sandbox {kind!r}; {hint}{_known_kinds(kind)}. If a package provides the sandbox, install it (its "
        f"entry point is in the group {ENTRY_POINT_GROUP})"
    )


def _kinds() -> list[str]:
    return list(dict.fromkeys((*_BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP)))))


def _known_kinds(nearest_to: str = "") -> str:
    """Return a part of a message that names all kinds, the most similar one first."""
    kinds = sorted(_kinds(), key=lambda kind: -difflib.SequenceMatcher(None, nearest_to, kind).ratio())
    return f"the known sandboxes are {', '.join(kinds)}"


def _describe_problem(problem: Mapping[str, Any], names: Sequence[str]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        matches = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
        return f"unknown key {key!r}; " + (
            f"did you mean {matches[0]!r}?" if matches else f"its keys are {', '.join(names)}"
        )
    if problem["type"] == "missing":
        return f"the key {key!r} is required"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{key}: {message}" if key else message
