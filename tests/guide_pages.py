"""Reads the pages of the documentation whose files and commands the tests run."""

import re
from dataclasses import dataclass, replace
from typing import Self

from tests.conftest import ROOT


@dataclass(frozen=True, slots=True)
class GuidePage:
    """A page of `docs/`.

    Attributes:
        text: the whole text.
        files: the text of each block below a file name.
        commands: the lines of the blocks `console`, without the prompt.
    """

    text: str
    files: dict[str, str]
    commands: list[str]

    @classmethod
    def read(cls, name: str) -> Self:
        """Read a page by its name in `docs/`."""
        text = (ROOT / "docs" / name).read_text("utf-8")
        files = dict(re.findall(r"\*\*`([\w.]+)`\*\*\n\n```\w+\n(.*?)```", text, re.DOTALL))
        page = cls(text, files, [])
        return replace(page, commands=[line.removeprefix("$ ") for line in page.blocks("console")])

    def blocks(self, language: str) -> list[str]:
        """Return the lines of all blocks of a language."""
        found = re.findall(rf"^```{language}\n(.*?)^```$", self.text, re.DOTALL | re.MULTILINE)
        return [line for block in found for line in block.splitlines()]

    def rows(self, first_cell: str) -> list[list[str]]:
        """Return the cells of the table whose first row begins with this cell, without the first two rows."""
        table = re.search(rf"^\| {re.escape(first_cell)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", self.text, re.MULTILINE)
        assert table is not None, first_cell
        return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()]

    def count_blocks(self, language: str = "") -> int:
        """Return the number of blocks of a language; of all named languages without one."""
        return len(re.findall(rf"^```{language or r'[a-z]+'}$", self.text, re.MULTILINE))
