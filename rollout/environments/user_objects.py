"""Imports a class or a function that the YAML names as `package.module:name`."""

import difflib
import importlib
import re
from types import ModuleType

from rollout.errors import ConfigurationError, describe_user_error
from rollout.import_path import describe_conflict, hidden_module

_PATH = re.compile(r"[\w.]{1,300}:\w{1,300}")


class ImportRefused(ConfigurationError):
    """A class or a function of the YAML cannot be imported. The message is no whole sentence; it follows a key."""


def is_object_path(path: object) -> bool:
    """Whether a value has the form `package.module:name`."""
    return isinstance(path, str) and _PATH.fullmatch(path) is not None


def import_object(path: str, directory: str) -> object:
    """Import what a path names. Its module may be in this directory, the last one of Python's path.

    Raises:
        ImportRefused: the module or its name does not exist, importing it fails, or another module has its name.
    """
    module_name, _, name = path.partition(":")
    module, problem = _import_module(module_name)
    if (hidden := hidden_module(module_name, directory)) is not None:
        raise ImportRefused(hidden)
    if module is None:
        raise ImportRefused(problem)
    found: object = getattr(module, name, None)
    if found is None:
        nearest = difflib.get_close_matches(name, vars(module), n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ImportRefused(f"{module_name} has no {name!r}{hint}")
    return found


def _import_module(name: str) -> tuple[ModuleType | None, str | None]:
    """Import a module. Return the module and None, or None and the reason why it cannot be imported."""
    try:
        return importlib.import_module(name), None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a user's module may raise anything, even SystemExit
        if (conflict := describe_conflict(error)) is not None:
            return None, f"importing {name} failed: {type(error).__name__}: {error}: {conflict}"
        if isinstance(error, ModuleNotFoundError):
            return None, f"there is no module {error.name!r}; install it, or put it next to this file or on PYTHONPATH"
        return None, f"importing {name} failed: {describe_user_error(error)}"
