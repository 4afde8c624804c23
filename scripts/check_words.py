"""Check the language of code and documents: long sentences, hard phrases, and fields of records without a description.

    python scripts/check_words.py                              # every file that git knows
    python scripts/check_words.py rollout/session README.md    # some of them

CONTRIBUTING.md explains the rules. A finding names the file and the line, and says what to write instead.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path

MAX_WORDS = 28
"""A sentence should have at most about 25 words. One with more than this number is a finding."""
QUOTING_FILES = ("scripts/check_words.py", "tests/unit/test_check_words.py")
"""The files that quote the hard phrases."""

HARD_PHRASES = {
    r"whom|whence|whither|hence|thence|thereof|therein|thereby|whereby|wherein|hereby|herein": "an everyday word",
    r"hitherto|henceforth|lest|amidst|amongst|whilst|likewise|notwithstanding|forthwith": "an everyday word",
    r"albeit|ought|shall|thus|upon|anew|merely|solely|suffices?": "an everyday word",
    r"beyond what|short of that|as it were|so to speak|by and by|now and then|in vain|told so": "it directly",
    r"(?:is|are) no \w+ of (?:its|their|that|this|the|our)(?! own)\b": "'is not a …'",
    r"unheard|lapsed?|lapses|disown(?:ed|s)?": "'expire' or 'lost'",
    r"lent": "'leased'",
    r"sees? to it|sees? to (?:that|engines)": "'makes sure that' or 'updates'",
    r"comes? to (?:an|no|its|their) end": "'ends' or 'does not end'",
    r"gives? no sign of life": "'sends no heartbeat'",
    r"a moment ago": "'just now'",
    r"one part of so many": "'1/20 of'",
}
"""Patterns of phrases, with what to write instead."""
HARD_STARTS = {
    r"Of \w+": "put the subject first",
    r"(?:Who|Whoever|Whom|Whose)\b(?!.*\?$)": "name who acts, as in 'the trainer' or 'the caller'",
}
"""Patterns of the start of a sentence, with what to do."""

_PHRASES = [(re.compile(rf"(?<![\w`'-])(?:{pattern})(?![\w`'-])", re.I), fix) for pattern, fix in HARD_PHRASES.items()]
_STARTS = [(re.compile(pattern), fix) for pattern, fix in HARD_STARTS.items()]
_SENTENCE_END = re.compile(
    r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[`*]*[A-Z0-9`*(])|(?<=:)\s+|\n\s*\n|\n\s*[-*|] |\n(?=\s*\w+: )"
)
_CODE = re.compile(r"`[^`]*`|\{[^{}]*\}|\b\w+://\S*|<[^<>]*>")
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_'’./-]*")
_DIRECTIVE = re.compile(r"#\s*(?:noqa|type:|!|fmt:)")
_LIST_ITEM = re.compile(r"\s*(?:[-*]|\d+\.) ")
_RECORD_BASES = ("NamedTuple", "TypedDict", "Section", "BaseModel")


@dataclass(frozen=True, slots=True)
class Text:
    """A text for people.

    Attributes:
        place: the file and the line at which the text begins.
        content: the text.
        has_sentences: whether its sentences are counted; a string in code may be a part of a sentence.
    """

    place: str
    content: str
    has_sentences: bool = True


def main(paths: list[str]) -> int:
    """Print every finding in the files of these paths; return 1 if there is one."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    files = [file for file in sorted(set(listed)) if Path(file).is_file() and not Path(file).is_symlink()]
    findings = [finding for file in files if file not in QUOTING_FILES for finding in check_file(file)]
    print("\n".join(findings) or "words: nothing found")
    return 1 if findings else 0


def check_file(file: str) -> Iterator[str]:
    """Yield every finding in a file; a file of an unknown type has none."""
    match Path(file).suffix:
        case ".py":
            source = Path(file).read_text()
            texts = python_texts(file, source)
            if not file.startswith("tests/"):
                yield from check_fields(file, source)
        case ".md":
            texts = markdown_texts(file, Path(file).read_text())
        case ".lua" | ".toml" | ".yaml" | ".yml" | "":  # also scripts, the Makefile and the Dockerfile
            texts = comment_texts(file, read_comments(Path(file).read_text(), "--" if file.endswith("lua") else "#"))
        case _:
            return
    for text in texts:
        yield from check_text(text)


def check_text(text: Text) -> Iterator[str]:
    """Yield what is hard to read in a text."""
    without_code = _CODE.sub("X", text.content)
    for pattern, fix in _PHRASES:
        if found := pattern.search(without_code):
            yield f"{text.place}: {found.group()!r} is hard to read; write {fix}"
    for sentence in _SENTENCE_END.split(without_code) if text.has_sentences else ():
        count = len(_WORD.findall(sentence or ""))
        if count > MAX_WORDS:
            yield f"{text.place}: a sentence has {count} words, at most {MAX_WORDS}: {shorten(sentence)}"
        for pattern, fix in _STARTS:
            if sentence and pattern.match(sentence.strip()):
                yield f"{text.place}: a sentence starts in a hard way; {fix}: {shorten(sentence)}"


def shorten(sentence: str) -> str:
    """Return the start of a sentence, on one line."""
    return " ".join(sentence.split())[:60] + "…"


def python_texts(file: str, source: str) -> Iterator[Text]:
    """Yield the docstrings, the strings and the comments of a module."""
    whole = set[ast.AST]()  # strings that are in the texts of the first loop
    nodes = list(ast.walk(ast.parse(source)))
    for node in nodes:
        match node:
            case ast.Expr(value=ast.Constant(value=str() as content) as constant):
                whole.add(constant)
                # Without examples, which are indented; a column of a list is a text of its own.
                lines = (line for line in cleandoc(content).split("\n") if not re.match(r"\s{4,}\S[^:]*[=(]", line))
                yield Text(f"{file}:{node.lineno}", re.sub(r"(?<=\S)[ ]{3,}", "\n\n", "\n".join(lines)))
            case ast.Raise(exc=ast.Call(args=[ast.Constant() | ast.JoinedStr() as message, *_])):
                whole.update(ast.walk(message))
                yield Text(f"{file}:{node.lineno}", join_message(message))
            case ast.keyword(arg="description" | "help", value=ast.Constant(value=str() as content) as constant):
                whole.add(constant)
                yield Text(f"{file}:{constant.lineno}", content)
    for node in nodes:
        match node:
            case ast.Constant(value=str() as content) if node not in whole and " " in content:
                yield Text(f"{file}:{node.lineno}", content, has_sentences=False)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = ((token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT)
    yield from comment_texts(file, comments)


def join_message(message: ast.Constant | ast.JoinedStr) -> str:
    """Return the text of a string or an f-string, with an X for each value."""
    parts = message.values if isinstance(message, ast.JoinedStr) else [message]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in parts)


def read_comments(source: str, marker: str) -> Iterator[tuple[int, str]]:
    """Yield the number of each line that is a comment, and the comment with `#` as its marker."""
    for number, line in enumerate(source.split("\n"), 1):
        if line.lstrip().startswith(marker):
            yield number, "#" + line.lstrip().removeprefix(marker)


def comment_texts(file: str, comments: Iterable[tuple[int, str]]) -> Iterator[Text]:
    """Yield comments as texts; comments in lines that follow each other are one text."""
    block: list[str] = []
    first = last = 0
    for number, comment in comments:
        if block and number != last + 1:
            yield Text(f"{file}:{first}", "\n".join(block))
            block = []
        first, last = first if block else number, number
        if _DIRECTIVE.match(comment):
            comment = "# " + comment.partition(" - ")[2]  # the reason that follows a directive
        is_example = re.match(r"#\s{3,}", comment)
        block.append("" if is_example else comment.lstrip("#").strip())
    if block:
        yield Text(f"{file}:{first}", "\n".join(block))


def markdown_texts(file: str, source: str) -> Iterator[Text]:
    """Yield the paragraphs, list items and table cells of a document, without its code and its headings."""
    block: list[str] = []
    first, in_code = 1, False
    for number, line in enumerate([*source.split("\n"), ""], 1):
        is_fence = line.lstrip().startswith("```")
        in_code ^= is_fence
        is_prose = not (in_code or is_fence or line.startswith(("#", "|")))
        if block and (not is_prose or not line.strip() or _LIST_ITEM.match(line)):
            yield Text(f"{file}:{first}", without_links("\n".join(block)))
            block = []
        if is_prose and line.strip():
            first = first if block else number
            block.append(line)
        elif line.startswith("|") and not in_code:
            for cell in line.strip("|").split("|"):
                yield Text(f"{file}:{number}", without_links(cell.strip()))


def without_links(text: str) -> str:
    """Replace the links of a document by their texts."""
    return re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)


def check_fields(file: str, source: str) -> Iterator[str]:
    """Yield each field of a public record that has no description: in `Attributes:`, below it, or as an argument."""
    for record in ast.parse(source).body:
        if not isinstance(record, ast.ClassDef) or record.name.startswith("_") or not is_record(record):
            continue
        described = set(re.findall(r"^\s+(\w+): ", ast.get_docstring(record) or "", re.MULTILINE))
        for statement, next_statement in zip(record.body, [*record.body[1:], None], strict=True):
            match statement:
                case ast.AnnAssign(target=ast.Name(id=name)) if not (name.startswith("_") or name in described):
                    is_described = isinstance(next_statement, ast.Expr) or "description=" in ast.unparse(statement)
                    if not is_described and "ClassVar" not in ast.unparse(statement.annotation):
                        yield f"{file}:{statement.lineno}: describe {record.name}.{name} in `Attributes:` or below it"


def is_record(definition: ast.ClassDef) -> bool:
    """Whether a class is a record: a dataclass, a named tuple, a typed dict, or a part of the configuration."""
    bases = [ast.unparse(base) for base in definition.bases]
    decorators = [ast.unparse(decorator) for decorator in definition.decorator_list]
    return any("dataclass" in decorator for decorator in decorators) or any(base in _RECORD_BASES for base in bases)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
