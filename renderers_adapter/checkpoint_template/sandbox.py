"""Jinja's sandbox, which remembers what a template may read, and notices when a template changes a text.

A template reads an attribute of each message many times, and the sandbox decides each time again. For values of a
plain type, the decision depends only on the type and on the name.

Most templates only copy, join and trim texts, so each mark for special text stays at its character. Other changes of
a text, such as `lower`, `replace`, a slice, or a loop over its characters, are noted in a `TextWatch`.
"""

import functools
import threading
from collections.abc import Callable, Iterable
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import nodes
from jinja2.runtime import LoopContext
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_PLAIN_TYPES = frozenset((dict, list, tuple, str, Namespace, LoopContext))
"""The types of most values in a template. Their subclasses, and all other types, are decided each time."""
_DICT_ATTRIBUTES = frozenset(dir(dict))
_METHODS = (MethodType, BuiltinMethodType)
_REPLACED_METHODS = ("format", "format_map")
"""Methods of texts that the sandbox replaces by safe ones."""
_MAX_REMEMBERED = 4096

_STRIPS = frozenset(("strip", "lstrip", "rstrip"))
_KEEPING_METHODS = _STRIPS.union(
    ("startswith", "endswith", "find", "rfind", "index", "rindex", "count"),
    (name for name in dir(str) if name.startswith("is")),
)
"""Methods of texts whose results are no text, or the text without white space around it."""
_KEEPING_FILTERS = frozenset(("count", "d", "default", "items", "length", "safe", "string", "tojson", "wordcount"))
"""Filters that do the same. All others change a text that they get, or take it apart."""
_ROLES = frozenset(("system", "user", "assistant", "tool"))
"""Texts that templates often change, and that no message can choose."""
_SEQUENCE_FILTER = "_sequence"


class TextWatch(threading.local):
    """Knows whether a template changed a text, for each thread.

    Attributes:
        has_changed: whether a text was changed since this was set to False.
    """

    has_changed = False

    def note(self, value: Any) -> None:
        """Note that a value is changed, if it is a text."""
        if isinstance(value, str) and value not in _ROLES:
            self.has_changed = True


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Allows what `ImmutableSandboxedEnvironment` allows, but no long text by repetition."""

    intercepted_binops = frozenset(("%", "*"))

    def __init__(self, watch: TextWatch, **options: Any) -> None:
        super().__init__(**options)
        self._watch = watch
        self._is_safe: dict[tuple[type, str], bool] = {}
        self._keeping_methods = _KEEPING_METHODS
        self.filters = {
            name: function if name in _KEEPING_FILTERS else _watched(function, watch)
            for name, function in self.filters.items()
        }
        self.filters[_SEQUENCE_FILTER] = self._take_apart

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return `obj.attribute` or `obj[attribute]`, as the sandbox does it."""
        kind = type(obj)
        if kind is dict and attribute not in _DICT_ATTRIBUTES:
            # The sandbox would first look for an attribute, and handle an error for each key of a message.
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if isinstance(obj, str) and attribute not in self._keeping_methods:
            self._watch.note(obj)
        if self._is_safe.get((kind, attribute)) and attribute not in _REPLACED_METHODS:
            try:
                value = getattr(obj, attribute)
            except AttributeError:
                return super().getattr(obj, attribute)
            if kind is str or type(value) not in _METHODS:
                return value
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return `obj[argument]`, as the sandbox does it."""
        if isinstance(obj, str):
            self._watch.note(obj)
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return the result of an operator that can change a text."""
        for value, factor in ((left, right), (right, left)):
            self._watch.note(value)
            is_repeated = operator == "*" and isinstance(value, str | list | tuple) and isinstance(factor, int)
            if is_repeated and len(value) * factor > MAX_RANGE:
                raise OverflowError(f"A text or a list would be too big, maximum size for repetition: {MAX_RANGE:,}.")
        return super().call_binop(context, operator, left, right)

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

    def _take_apart(self, value: Any) -> Any:
        self._watch.note(value)
        return value

    def _generate(self, source: nodes.Template, *arguments: Any, **options: Any) -> str:
        """Compile a template in which each place that takes a sequence apart notes whether this is a text."""
        for node, field in list(_sequences(source)):
            setattr(node, field, nodes.Filter(getattr(node, field), _SEQUENCE_FILTER, [], [], None, None))
        if not all(map(_strips_white_space, source.find_all(nodes.Call))):
            self._keeping_methods -= _STRIPS
        source.set_environment(self)
        return super()._generate(source, *arguments, **options)


def _watched(function: Callable[..., Any], watch: TextWatch) -> Callable[..., Any]:
    """Return a filter that notes a text that it gets. `trim` without characters only removes white space."""
    position = 1 if hasattr(function, "jinja_pass_arg") else 0
    arguments_that_keep = position + 1 if function.__name__ == "do_trim" else 0

    @functools.wraps(function)
    def filtered(*arguments: Any, **options: Any) -> Any:
        if len(arguments) != arguments_that_keep or options:
            watch.note(arguments[position])
        return function(*arguments, **options)

    return filtered


def _sequences(program: nodes.Template) -> Iterable[tuple[nodes.Node, str]]:
    """Yield the expressions that a template takes apart without a filter: the node, and the name of its field."""
    for loop in program.find_all(nodes.For):
        yield loop, "iter"
    for item in program.find_all(nodes.Getitem):
        if isinstance(item.arg, nodes.Slice):
            yield item, "node"
    for assignment in program.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Tuple):
            yield assignment, "node"
    for call in program.find_all(nodes.Call):
        if call.dyn_args is not None:
            yield call, "dyn_args"


def _strips_white_space(call: nodes.Call) -> bool:
    """Whether a call removes only white space, if it is a call of `strip`, `lstrip` or `rstrip`."""
    if not isinstance(call.node, nodes.Getattr) or call.node.attr not in _STRIPS:
        return True
    return all(isinstance(value, nodes.Const) and not str(value.value).strip() for value in call.args)
