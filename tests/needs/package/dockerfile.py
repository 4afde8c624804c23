"""Parses a Dockerfile into stages of instructions. It knows the grammar that ours uses, and refuses the rest."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

_FLAGS = {"COPY": {"from"}}
_KEYWORDS = {"FROM", "ARG", "ENV", "LABEL", "RUN", "COPY", "WORKDIR", "USER", "ENTRYPOINT"}
_VARIABLE = re.compile(r"\$(?:(?P<plain>\w+)|\{(?P<braced>\w+)(?:(?P<operator>:[-+])(?P<word>[^}]*))?\})", re.ASCII)


class DockerfileError(ValueError):
    """The Dockerfile is invalid, or it uses a part of the grammar that this module does not know."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, with its continuation lines joined."""

    line: int
    keyword: str
    arguments: str
    flags: Mapping[str, str] = field(default_factory=dict)

    def words(self) -> list[str]:
        """Return the words of the shell form, without their quotes."""
        return shlex.split(self.arguments)

    def exec_form(self) -> list[str]:
        """Return the words of the exec form, which starts the command without a shell, so that it gets signals.

        Raises:
            DockerfileError: the instruction is not in the exec form.
        """
        try:
            words = json.loads(self.arguments)
        except json.JSONDecodeError:
            words = None
        if not (isinstance(words, list) and words and all(isinstance(word, str) for word in words)):
            raise DockerfileError(f'line {self.line}: {self.keyword} must be a list like ["rollout"]')
        return words

    def pairs(self) -> dict[str, str]:
        """Return the keys and values of ENV or LABEL, without quotes."""
        pairs = [word.partition("=") for word in self.words()]
        if not all(separator for _, separator, _ in pairs):
            raise DockerfileError(f"line {self.line}: {self.keyword} must be KEY=VALUE")
        return {key: value for key, _, value in pairs}


@dataclass(frozen=True, slots=True)
class Stage:
    """One FROM, and the instructions after it."""

    name: str
    base: str
    """As written, with variables."""
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """The build arguments before the first stage, with their defaults, and the stages by their names."""

    arguments: Mapping[str, str | None]
    stages: Mapping[str, Stage]

    def lineage(self, name: str) -> list[Stage]:
        """Return this stage and the stages that it is based on, the first one first."""
        stage = self.stages[name]
        return [*(self.lineage(stage.base) if stage.base in self.stages else []), stage]


def parse(text: str) -> Dockerfile:
    """Read a Dockerfile.

    Raises:
        DockerfileError: an instruction, a flag or a reference to a stage is unknown.
    """
    arguments: dict[str, str | None] = {}
    stages: dict[str, list[Instruction]] = {}
    bases: dict[str, str] = {}
    name = ""
    for instruction in _instructions(text):
        if instruction.keyword == "FROM":
            base, *rest = instruction.words()
            if len(rest) != 2 or rest[0].upper() != "AS" or rest[1] in stages:
                raise DockerfileError(f"line {instruction.line}: each stage needs a name of its own: FROM BASE AS NAME")
            name = rest[1]
            bases[name], stages[name] = base, []
        elif name:
            _check_reference(instruction, set(stages) - {name})
            stages[name].append(instruction)
        elif instruction.keyword == "ARG":
            key, value = argument(instruction)
            arguments[key] = value
        else:
            raise DockerfileError(f"line {instruction.line}: only ARG may stand before the first FROM")
    return Dockerfile(arguments, {key: Stage(key, bases[key], tuple(found)) for key, found in stages.items()})


def argument(instruction: Instruction) -> tuple[str, str | None]:
    """Return the name and the default of an ARG."""
    key, separator, value = " ".join(instruction.words()).partition("=")
    return key, value if separator else None


def substitute(text: str, variables: Mapping[str, str]) -> str:
    """Replace variables as the builder does, in all instructions but RUN."""

    def replace(match: re.Match[str]) -> str:
        value = variables.get(match["plain"] or match["braced"], "")
        if match["operator"] == ":-":
            return value or match["word"]
        return (match["word"] if value else "") if match["operator"] == ":+" else value

    return _VARIABLE.sub(replace, text)


def _instructions(text: str) -> list[Instruction]:
    found: list[Instruction] = []
    parts: list[str] = []
    first_line = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not parts):
            continue
        first_line = first_line if parts else number
        parts.append(line.strip().removesuffix("\\").rstrip())
        if not line.rstrip().endswith("\\"):
            found.append(_instruction(first_line, " ".join(parts)))
            parts = []
    if parts:
        raise DockerfileError(f"line {first_line}: the instruction does not end")
    return found


def _instruction(line: int, text: str) -> Instruction:
    keyword, _, rest = text.partition(" ")
    keyword = keyword.upper()
    if keyword not in _KEYWORDS:
        raise DockerfileError(f"line {line}: {keyword} is not known here")
    flags = {}
    while match := re.match(r"--([\w-]+)=(\S+)\s+", rest):
        flags[match[1]], rest = match[2], rest[match.end() :]
    if rest.startswith("--") or set(flags) - _FLAGS.get(keyword, set()) or (keyword == "RUN" and "<<" in rest):
        raise DockerfileError(f"line {line}: a flag of {keyword}, or its here-document, is not known here")
    return Instruction(line, keyword, rest.strip(), flags)


def _check_reference(instruction: Instruction, earlier_stages: set[str]) -> None:
    source = instruction.flags.get("from")
    if source is not None and source not in earlier_stages:
        raise DockerfileError(f"line {instruction.line}: no earlier stage is called {source!r}")
