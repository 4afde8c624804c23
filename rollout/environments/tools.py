"""Makes tools from functions: `@tool` computes the schema with which the model can call a function.

    @tool
    def search(query: str, limit: int = 5) -> str:
        '''Search the handbook.

        Args:
            query: words to look for.
            limit: how many passages at most.
        '''

The schema is made by pydantic from the signature, the annotations and the docstring. pydantic also validates the
arguments that the model writes. So an argument may have any type that pydantic validates, such as a model or an enum. A
test can still call the function directly. `rollout.environments.tool_environment` has the environment class for tools.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from types import MethodType, SimpleNamespace
from typing import (
    Annotated,
    Any,
    Concatenate,
    Generic,
    NoReturn,
    ParamSpec,
    Self,
    TypeVar,
    get_type_hints,
    overload,
)

import orjson
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind

from rollout.environments.tool_docstrings import ToolDocumentation, read_docstring
from rollout.environments.tool_schemas import inline_definitions
from rollout.errors import ConfigurationError, RolloutError
from rollout.records.wrong_types import describe_wrong_type, show_value

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R", covariant=True)

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_MAX_SHOWN_PROBLEMS = 5


class ToolUnusable(ConfigurationError):
    """A function cannot be a tool, or the tools of an environment conflict; the error says what to write."""


class ArgumentsInvalid(RolloutError):
    """The model called a tool with arguments that are not valid; the model reads this text."""


class Tool(Generic[P, R]):
    """A function that the model may call; `tool` makes it.

    Attributes:
        function: the function itself.
        name: the name by which the model calls it.
        schema: its schema in the form of OpenAI's chat API.
        timeout: the time limit for one call, in seconds; None means the environment's `tool_timeout`.
        where: the name of the function with its file and line, for errors.
        is_method: whether the function is a method of an environment.
    """

    function: Callable[P, R]

    def __init__(self, function: Callable[P, R], *, name: str | None, timeout: float | None) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.where = _describe_function(function)
        if isinstance(function, functools.partial):
            self._refuse("is a functools.partial; write a `def` with its own docstring that calls it")
        self.name = self._check_name(getattr(function, "__name__", "") if name is None else name)
        self.timeout = self._check_timeout(timeout)
        self.is_method = _is_method(function)
        innermost = inspect.unwrap(function)
        if inspect.isgeneratorfunction(innermost) or inspect.isasyncgenfunction(innermost):
            self._refuse("has a `yield`, which makes it a generator; use `return` instead")
        documentation = read_docstring(function.__doc__ or "")
        if not documentation.description:
            self._refuse("has no description; add a docstring with one, because the model reads it")
        self._arguments = self._make_adapter(documentation)
        self.schema: Mapping[str, Any] = {
            "type": "function",
            "function": {
                "name": self.name,
                "description": documentation.description,
                "parameters": inline_definitions(self._arguments.json_schema(schema_generator=_ArgumentsSchema)),
            },
        }

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function without validation, and return its result."""
        return self.function(*args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self: "Tool[Concatenate[Any, Q], R]", instance: object, owner: type) -> Callable[Q, R]: ...
    def __get__(self, instance: object, owner: type) -> Any:
        return MethodType(self, instance) if self.is_method and instance is not None else self

    def __repr__(self) -> str:
        return f"<tool {self.name}>"

    def parse_arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the validated arguments of a call; a missing argument gets its default value.

        Raises:
            ArgumentsInvalid: the arguments do not match the schema.
        """
        try:
            parsed: dict[str, Any] = self._arguments.validate_json(orjson.dumps(dict(arguments)))
        except ValidationError as error:
            raise ArgumentsInvalid(self._describe_problems(error)) from None
        return parsed

    def _make_adapter(self, documentation: ToolDocumentation) -> TypeAdapter[Any]:
        parameters = list(inspect.signature(self.function).parameters.values())
        if self.is_method:
            if not parameters or parameters[0].name != "self":
                self._refuse("is in a class, but has no `self`; add `self`, or move the function out of the class")
            del parameters[:1]
        for parameter in parameters:
            self._check_parameter(parameter)
        if unknown := documentation.parameters.keys() - {parameter.name for parameter in parameters}:
            self._refuse(f"describes `{min(unknown)}` in its docstring, but has no parameter of this name")
        hints = self._evaluate_annotations(parameters)
        for name, description in documentation.parameters.items():
            if description and not _has_description(hints[name]):
                hints[name] = Annotated[hints[name], Field(description=description)]

        def return_arguments(**arguments: Any) -> dict[str, Any]:
            return arguments

        return_arguments.__annotations__ = hints
        return_arguments.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
                for parameter in parameters
            ]
        )
        try:
            adapter: TypeAdapter[Any] = TypeAdapter(return_arguments)  # type: ignore[arg-type]  # a function, too
            adapter.json_schema(schema_generator=_ArgumentsSchema)
        except PydanticUserError as error:
            self._refuse_annotation(hints, error)
        return adapter

    def _evaluate_annotations(self, parameters: list[inspect.Parameter]) -> dict[str, Any]:
        """Return the types of the parameters.

        The type of the result is not evaluated, because it may need an import that only type checkers do.
        """
        annotations = SimpleNamespace(__annotations__={each.name: each.annotation for each in parameters})
        try:
            module = getattr(inspect.unwrap(self.function), "__globals__", {})
            return get_type_hints(annotations, globalns=module, include_extras=True)
        except NameError as error:
            self._refuse(
                f"has an annotation that cannot be evaluated: {error}; import or define it at the top of the module"
            )

    def _check_name(self, name: object) -> str:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self._refuse(
                f"has the name {show_value(name)}; expected a letter, then up to 63 letters, digits, `_` or `-`. "
                "Rename the function, or write `@tool(name=…)`"
            )
        return name

    def _check_timeout(self, timeout: object) -> float | None:
        if timeout is None:
            return None
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            self._refuse(f"has the timeout {show_value(timeout)}; expected a number of seconds above 0")
        return float(timeout)

    def _check_parameter(self, parameter: inspect.Parameter) -> None:
        name = parameter.name
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            self._refuse(f"takes `{parameter}`; give each parameter a name, because the model uses the names")
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            self._refuse(f"takes `{name}` by position only; remove the `/`, because the model passes arguments by name")
        if name.startswith("_"):
            self._refuse(f"has the private parameter `{name}`; rename or remove it, because the model would see it")
        if parameter.annotation is inspect.Parameter.empty:
            self._refuse(f"has the parameter `{name}` without a type; write `{name}: str`, or another type")

    def _refuse_annotation(self, hints: Mapping[str, Any], error: PydanticUserError) -> NoReturn:
        for name, hint in hints.items():
            try:
                TypeAdapter(hint).json_schema(schema_generator=_ArgumentsSchema)
            except PydanticUserError as problem:
                self._refuse(
                    f"has the parameter `{name}`, whose type has no JSON schema; use str, int, float, bool, list, "
                    f"dict, Literal, an enum, a dataclass or a pydantic model ({_first_sentence(problem)})"
                )
        self._refuse(f"has parameters without a JSON schema; change their types: {error}")

    def _describe_problems(self, error: ValidationError) -> str:
        problems = error.errors(include_url=False, include_context=False)
        texts = []
        for problem in problems[:_MAX_SHOWN_PROBLEMS]:
            where = ".".join(map(str, problem["loc"]))
            given = "" if problem["type"].startswith("missing") else f", not {show_value(problem['input'])}"
            texts.append(f"`{where}`: {_PROBLEMS.get(problem['type'], problem['msg'])}{given}")
        if len(problems) > _MAX_SHOWN_PROBLEMS:
            texts.append(f"and {len(problems) - _MAX_SHOWN_PROBLEMS} more")
        return f"the arguments of {self.name} are not valid: {'; '.join(texts)}"

    def _refuse(self, problem: str) -> NoReturn:
        raise ToolUnusable(f"the tool {self.where} {problem}.")


@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...
@overload
def tool(*, name: str | None = None, timeout: float | None = None) -> Callable[[Callable[P, R]], Tool[P, R]]: ...
def tool(
    function: Callable[P, R] | None = None, /, *, name: str | None = None, timeout: float | None = None
) -> Tool[P, R] | Callable[[Callable[P, R]], Tool[P, R]]:
    """Return a tool that is made from a function or a method of an environment; both may be coroutine functions.

    Args:
        function: the function; the model reads its docstring.
        name: the name by which the model calls it; None means the name of the function.
        timeout: the time limit for one call, in seconds; None means the environment's `tool_timeout`.

    Raises:
        ToolUnusable: the model could not call the function; the error says what to write.
    """
    if function is None:
        return functools.partial(Tool, name=name, timeout=timeout)
    if not callable(function):
        raise ToolUnusable(f"@tool got {describe_wrong_type(function)}; write it above a `def` or an `async def`.")
    return Tool(function, name=name, timeout=timeout)


_PROBLEMS = {
    "missing_keyword_only_argument": "is missing",
    "missing_argument": "is missing",
    "unexpected_keyword_argument": "is not a parameter of the tool",
}
"""The model reads these texts instead of pydantic's, which are about functions of Python, not about tools."""


class _ArgumentsSchema(GenerateJsonSchema):
    """Makes a schema. It leaves out defaults and parts of types that have no JSON form, without a warning."""

    ignored_warning_kinds: set[JsonSchemaWarningKind] = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012


def _is_method(function: object) -> bool:
    """Whether a function is defined in the body of a class."""
    scope = getattr(inspect.unwrap(function), "__qualname__", "").rpartition(".")[0]  # type: ignore[arg-type]
    return bool(scope) and not scope.endswith("<locals>")


def _describe_function(function: object) -> str:
    name = getattr(function, "__qualname__", type(function).__qualname__)
    code = getattr(inspect.unwrap(function), "__code__", None)  # type: ignore[arg-type]
    return name if code is None else f"{name} ({code.co_filename}, line {code.co_firstlineno})"


def _first_sentence(problem: PydanticUserError) -> str:
    return problem.message.partition("\n")[0].rstrip(".")


def _has_description(hint: Any) -> bool:
    return any(getattr(each, "description", None) for each in getattr(hint, "__metadata__", ()))
