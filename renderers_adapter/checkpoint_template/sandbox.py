"""Jinja's sandbox, which remembers what a template may read, so that a long conversation is rendered in less time.

A template reads an attribute of each message many times, and the sandbox decides each time again. For values of a
plain type, the decision depends only on the type and on the name.
"""

from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_PLAIN_TYPES = frozenset((dict, list, tuple, str, Namespace, LoopContext))
"""The types of most values in a template. Their subclasses, and all other types, are decided each time."""
_DICT_ATTRIBUTES = frozenset(dir(dict))
_METHODS = (MethodType, BuiltinMethodType)
_REPLACED_METHODS = ("format", "format_map")
"""Methods of texts that the sandbox replaces by safe ones."""
_MAX_REMEMBERED = 4096


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Allows exactly what `ImmutableSandboxedEnvironment` allows."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._is_safe: dict[tuple[type, str], bool] = {}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return `obj.attribute` or `obj[attribute]`, as the sandbox does it."""
        kind = type(obj)
        if kind is dict and attribute not in _DICT_ATTRIBUTES:
            # The sandbox would first look for an attribute, and handle an error for each key of a message.
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if self._is_safe.get((kind, attribute)) and attribute not in _REPLACED_METHODS:
            try:
                value = getattr(obj, attribute)
            except AttributeError:
                return super().getattr(obj, attribute)
            if kind is str or type(value) not in _METHODS:
                return value
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether the sandbox allows an attribute."""
        key = type(obj), attr
        if key[0] not in _PLAIN_TYPES:
            return super().is_safe_attribute(obj, attr, value)
        is_safe = self._is_safe.get(key)
        if is_safe is None:
            is_safe = super().is_safe_attribute(obj, attr, value)
            if len(self._is_safe) < _MAX_REMEMBERED:
                self._is_safe[key] = is_safe
        return is_safe
