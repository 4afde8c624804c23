"""The check of the language finds what is hard to read, and nothing in plain text."""

import subprocess
from pathlib import Path

import pytest

from scripts.check_words import MAX_WORDS, check_fields, check_file, main

LONG_SENTENCE = "word " * (MAX_WORDS + 1)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    return tmp_path


def findings_in(project: Path, name: str, content: str) -> list[str]:
    (project / name).write_text(content)
    return list(check_file(name))


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("docstring.py", f'"""Short.\n\n{LONG_SENTENCE}.\n"""', 1),
        ("method.py", f'class C:\n    def f(self):\n        """Short (1). {LONG_SENTENCE}\n        """', 3),
        ("error.py", f'x = 1\nraise ValueError(f"{{x}} {LONG_SENTENCE}")', 2),
        ("help.py", f'x = Field(\n    description="{LONG_SENTENCE}"\n)', 2),
        ("semicolon.py", f"# {'word ' * 14}; {'word ' * 15}", 1),
        ("comment.py", f"x = 1\n# {LONG_SENTENCE}", 2),
        ("trailing.py", f"x = 1\ny = 2  # {LONG_SENTENCE}", 2),
        ("two_lines.py", f"# {'word ' * 14}\n# {'word ' * 15}", 1),
        ("page.md", f"# Page\n\n{LONG_SENTENCE}", 3),
        ("cell.md", f"| a | b |\n|---|---|\n| {LONG_SENTENCE} | c |", 3),
        ("item.md", f"- short\n- {LONG_SENTENCE}", 2),
        ("script.lua", f"return 1\n-- {LONG_SENTENCE}", 2),
        ("file.yaml", f"# {LONG_SENTENCE}\nkey: value", 1),
    ],
)
def test_a_long_sentence_is_found_at_its_line(project: Path, name: str, content: str, line: int) -> None:
    (finding,) = findings_in(project, name, content)
    assert finding.startswith(f"{name}:{line}: a sentence has ")


@pytest.mark.parametrize(
    "content",
    [
        'raise ValueError("the key is lent to another worker")',
        '"""Send the record anew."""',
        "x = 1  # the leases lapse",
        'raise ValueError(f"{x!r} is no value of its type")',
    ],
)
def test_a_hard_phrase_is_found_in_strings_docstrings_and_comments(project: Path, content: str) -> None:
    (finding,) = findings_in(project, "code.py", content)
    assert finding.startswith("code.py:1: ")
    assert "is hard to read; write" in finding


@pytest.mark.parametrize("start", ["Of these, two are open.", "Whoever waits is told.", "Who shows it reads it."])
def test_a_sentence_that_starts_in_a_hard_way_is_found(project: Path, start: str) -> None:
    (finding,) = findings_in(project, "page.md", f"This is a page. {start}\n")
    assert "a sentence starts in a hard way" in finding


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("code.md", f"Run it.\n\n```\n{LONG_SENTENCE}\n```\n"),
        ("longest.md", "word " * MAX_WORDS),
        ("list.md", "".join(f"- {'a word ' * 10}\n" for _ in range(5))),
        ("question.md", "Who reads this page?\n"),
        ("name.md", "`whom` is the name of an option.\n"),
        ("directive.py", "x = 1  # noqa: S101 - a reason\n"),
        ("example.py", f'"""Short.\n\n    call(1) {LONG_SENTENCE}\n\nMore.\n"""'),
        ("unknown.bin", LONG_SENTENCE),
    ],
)
def test_code_lists_and_plain_text_have_no_finding(project: Path, name: str, content: str) -> None:
    assert findings_in(project, name, content) == []


def test_each_field_of_a_public_record_needs_a_description() -> None:
    source = '''
@dataclass(frozen=True)
class Point:
    """A point.

    Attributes:
        x: metres to the east.
    """

    x: float
    y: float
    z: float
    """Metres above the ground."""
    kind: ClassVar[str] = "point"
    _cache: int = 0


class Settings(Section):
    timeout: float = Field(default=1.0, description="Seconds.")
    retries: int = 3


class _Private(NamedTuple):
    x: int


class NoRecord:
    x: int
'''
    assert [finding.partition(": ")[2] for finding in check_fields("records.py", source)] == [
        "describe Point.y in `Attributes:` or below it",
        "describe Settings.retries in `Attributes:` or below it",
    ]


def test_only_the_given_paths_are_checked(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings_in(project, "good.md", "A page.\n")
    findings_in(project, "bad.md", "A page for whom?\n")
    assert main(["good.md"]) == 0
    assert capsys.readouterr().out == "words: nothing found\n"
    assert main([]) == 1
    assert capsys.readouterr().out == "bad.md:1: 'whom' is hard to read; write an everyday word\n"
