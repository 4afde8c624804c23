"""A script that answers instead of a model, so that no GPU is needed."""

import re
from collections.abc import Sequence

from rollout.serving.policies import AnswerSlot, Pixels

WANTED = re.compile(r"(\d+) x (\w+)")
RESULT = re.compile(r"<tool_response>\n(.*?)\n</tool_response>")


class Buyer:
    """Asks for all prices at once, then pays; sometimes the sum is wrong."""

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[AnswerSlot]:
        """Return the possible answers; an answer with a greater logit is likelier."""
        question = prompt.rpartition("Buy ")[2]
        wanted, results = WANTED.findall(question), RESULT.findall(question)
        if not results:
            calls = [call("price", f'"fruit": "{fruit}"') for _, fruit in wanted]
            return [AnswerSlot({"\n".join(calls): 0.0})]
        if len(results) > len(wanted):
            return [AnswerSlot({"Done.": 0.0})]
        pairs = zip(wanted, results, strict=True)
        total = sum(int(count) * int(result) for (count, _), result in pairs)
        right, wrong = (call("pay", f'"amount": {n}') for n in (total, total + 1))
        return [AnswerSlot({right: 2.0, wrong: 0.0})]


def call(name: str, arguments: str) -> str:
    """Return a tool call in the format of the model family qwen3."""
    function = f'{{"name": "{name}", "arguments": {{{arguments}}}}}'
    return f"<tool_call>\n{function}\n</tool_call>"
