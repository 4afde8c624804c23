"""A script that answers instead of a model, so that no GPU is needed."""

import re
from collections.abc import Sequence

from rollout.serving.policies import AnswerSlot, Pixels

WANTED = re.compile(r"codes of the (\w+) door and the (\w+) door")
NOTE = re.compile(r"(\w+) door: (\d+)")
CALL = """<tool_call>
{"name": "read_file", "arguments": {"name": "notes.txt"}}
</tool_call>"""


class Reader:
    """Reads the notes, then answers; sometimes it forgets a code."""

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[AnswerSlot]:
        """Return the possible answers; an answer with a greater logit is likelier."""
        wanted, codes = WANTED.search(prompt), dict(NOTE.findall(prompt))
        if wanted is None or not codes:
            return [AnswerSlot({CALL: 0.0})]
        first, second = (codes[door] for door in wanted.groups())
        right, half = f"{first}, {second}", f"{first}, I forgot the other"
        return [AnswerSlot({right: 1.0, half: 0.0})]
