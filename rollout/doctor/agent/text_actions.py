"""Finds in a prompt how an agent without tools wants its commands, and how it wants to be told that the task is done.

Many such agents ask for one command in a block of code, and end at a command that their prompt names.
"""

import re

_BLOCK = re.compile(r"^```(\S*(?:bash|shell|sh)\S*)[ \t]*$", re.M)
_ENDING = re.compile(r"\becho\s+['\"]?([A-Z][A-Z0-9_]{7,})")


def block_language(prompt: str) -> str | None:
    """Return the language of the first block of shell code in a prompt; None if there is none."""
    found = _BLOCK.search(prompt)
    return found[1] if found else None


def command_block(language: str, command: str) -> str:
    """Return a block of code with a command."""
    return f"```{language}\n{command}\n```"


def ending_command(prompt: str) -> str | None:
    """Return the command with which a prompt says that the task ends; None if it names none."""
    found = _ENDING.search(prompt)
    return f"echo {found[1]}" if found else None
