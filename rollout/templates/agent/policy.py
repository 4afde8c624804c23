"""A script that answers instead of a model, so that no GPU is needed."""

import re
from collections.abc import Sequence

from rollout.serving.policies import AnswerSlot, Pixels

WANTED = re.compile(r"code of the (\w+) door and that of the (\w+) door")
RESULT = re.compile(r"<tool_response>\n(\d+)\n</tool_response>")


class Reader:
    """Reads both notes at once, then answers; sometimes it forgets a code."""

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[AnswerSlot]:
        """Return the possible answers; an answer with a greater logit is likelier."""
        wanted, codes = WANTED.search(prompt), RESULT.findall(prompt)
        if wanted is None or len(codes) < 2:
            doors = wanted.groups() if wanted else ()
            calls = [call(door) for door in doors]
            return [AnswerSlot({"\n".join(calls) or "?": 0.0})]
        right, half = f"{codes[0]}, {codes[1]}", f"{codes[0]}, I forgot the other"
        return [AnswerSlot({right: 1.0, half: 0.0})]


def call(door: str) -> str:
    """Return a tool call in the format of the model family qwen3."""
    function = f'{{"name": "read_note", "arguments": {{"door": "{door}"}}}}'
    return f"<tool_call>\n{function}\n</tool_call>"
