"""Adds directories of users to Python's path, and reports two modules on the path with the same name.

This module is imported before the path is checked, so it imports only modules that a user's file cannot replace.
"""

import os
import sys
from importlib.machinery import PathFinder


def search_last(directory: str) -> None:
    """Add a directory at the end of Python's path; installed modules and Python's own modules come first."""
    if directory not in sys.path:
        sys.path.append(directory)


def hidden_module(name: str, directory: str) -> str | None:
    """Return a message if a module with the same name was imported instead of this directory's module, or else None."""
    imported_file = _imported_file(name)
    return None if imported_file is None else _describe(name, imported_file, [directory])


def describe_conflict(error: BaseException) -> str | None:
    """Return a message if the error may come from two modules with the same name, or else None."""
    for name, imported_file in _suspects(error):
        if description := _describe(name, imported_file, sys.path):
            return description
    return None


def _suspects(error: BaseException) -> list[tuple[str, str]]:
    """Return the modules that an error or one of its causes names or was raised in, each with its file."""
    suspects: list[tuple[str, str | None]] = []
    cause: BaseException | None = error
    while cause is not None:
        name = cause.name if isinstance(cause, ImportError) else None
        if isinstance(cause, AttributeError) and isinstance(cause.obj, type(sys)):
            name = cause.obj.__name__
        suspects.append((name or "", _imported_file(name or "")))
        trace = cause.__traceback__
        while trace is not None:
            names = trace.tb_frame.f_globals
            suspects.append((names.get("__name__", ""), _if_before_python(names.get("__file__"))))
            trace = trace.tb_next
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, SystemError):  # a compiled module could not import another one, and does not name it
        suspects += [
            (name, _if_before_python(getattr(module, "__file__", None))) for name, module in sys.modules.items()
        ]
    return [(name, file) for name, file in suspects if file is not None]


def _if_before_python(file: str | None) -> str | None:
    """Return the file of a module if its directory is searched before Python's own modules, or else None."""
    python = os.path.dirname(os.__file__)
    front = sys.path[: sys.path.index(python)] if python in sys.path else sys.path
    return file if file is not None and os.path.dirname(file.removesuffix("/__init__.py")) in front else None


def _imported_file(name: str) -> str | None:
    """Return the file of an imported module, or its directory if it has no file; None if it is not imported."""
    module = sys.modules.get(name.partition(".")[0])
    if module is None:
        return None
    directories = [str(directory) for directory in getattr(module, "__path__", ())]
    return getattr(module, "__file__", None) or next(iter(directories), "a part of Python itself")


def _describe(name: str, imported_file: str, path: list[str]) -> str | None:
    name = name.partition(".")[0]
    for directory in path if name != "__main__" else ():
        spec = PathFinder.find_spec(name, [directory])
        other_file = spec.origin if spec is not None and spec.has_location else None
        if other_file is not None and os.path.realpath(other_file) != os.path.realpath(imported_file):
            return f"two modules have the name {name}: {imported_file} was imported, not {other_file}; rename yours"
    return None
