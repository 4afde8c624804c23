"""Scripts that mend the repositories of this example instead of a model, so that it needs no GPU.

A script reads the conversation, and does one step in each turn: it looks at the file, edits it, runs the tests, and
ends. The edit is right three times in four at the temperature 1, and always at 0.
"""

import abc
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollout.environments.palette import PALETTE
from rollout.serving.policies import AnswerSlot, Pixels, nearest_color

RIGHT_LOGIT = math.log(3)
TEST = "python3 -m unittest discover tests"
PICTURE = "sign.png"

_ANSWER_START = "<|im_start|>assistant\n"
_FILE = re.compile(r"mend the bug in (\w+\.py)")
_TESTS_RAN = re.compile(r"Ran \d+ tests? in")


@dataclass(frozen=True)
class Mend:
    """A bug and two ways to edit it.

    Attributes:
        bug: the text that is wrong; it is in the file once.
        right: the text that the tests want in its place.
        wrong: a text with which they still fail.
    """

    bug: str
    right: str
    wrong: str


MENDS = {
    "slugs.py": Mend("[^a-z0-9]", right="[^a-z0-9]+", wrong="[^a-z0-9 ]"),
    "intervals.py": Mend("[0], end)", right="[0], max(end, merged[-1][1]))", wrong="[0], min(end, merged[-1][1]))"),
    "roman.py": Mend("else 0", right="else -value", wrong="else 1"),
}


def mend_sign(picture: Pixels) -> Mend:
    """Return how the colour in shop_sign.py is edited, after a look at the picture."""
    seen = nearest_color(picture) or "grey"
    return Mend("grey", right=seen, wrong=next(color for color in PALETTE if color != seen))


@dataclass(frozen=True)
class Call:
    """A call of one of the agent's tools.

    Attributes:
        name: the name of the tool.
        arguments: its arguments.
    """

    name: str
    arguments: Mapping[str, Any]


class _MendingScript(abc.ABC):
    """Plays one step in each turn. Subclasses know the tools of an agent."""

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[AnswerSlot]:
        """See `ScriptedPolicy.answer`."""
        file = _FILE.search(prompt)
        if file is None:
            return self.end("There is no task.")
        name = file[1]
        played = prompt.split(_ANSWER_START)[1:-1]
        results = "".join(played)
        if not played:
            return _say("I look at the file first.", [self.look(name, prompt)])
        if _TESTS_RAN.search(results):
            passed = "FAILED" not in results
            return self.end("The tests pass now." if passed else "A test still fails, and I do not know why.")
        if any(self.edit_mark in turn.partition("<|im_end|>")[0] for turn in played):
            return _say("I run the tests.", [self.run(TEST)])
        if name not in MENDS and not images:
            return _say("I need to see the sign.", [self.look_at_picture(prompt)])
        mend = MENDS[name] if name in MENDS else mend_sign(images[-1])
        if mend.bug not in results:
            return self.end("I find no bug.")
        logits = {
            _write("This text is wrong.", [self.edit(name, mend.bug, text, prompt)]): logit
            for text, logit in ((mend.right, RIGHT_LOGIT), (mend.wrong, 0.0))
        }
        return [AnswerSlot(logits)]

    edit_mark = "sed -i"
    """The text by which an edit is recognised."""

    @abc.abstractmethod
    def run(self, command: str) -> Call:
        """Return the call that runs a command."""

    def end(self, text: str) -> Sequence[AnswerSlot]:
        """Return the last answer."""
        return _say(text, [])

    def look(self, file: str, prompt: str) -> Call:
        """Return the call that shows a file."""
        return self.run(f"cat {file}")

    def look_at_picture(self, prompt: str) -> Call:
        """Return the call that shows the picture."""
        return self.look(PICTURE, prompt)

    def edit(self, file: str, old: str, new: str, prompt: str) -> Call:
        """Return the call that replaces a text in a file."""
        old, new = re.sub(r"([][\\/.*^$])", r"\\\1", old), re.sub(r"([\\/&])", r"\\\1", new)
        return self.run(f"sed -i 's/{old}/{new}/' {file}")


class MiniSweAgentPolicy(_MendingScript):
    """Plays mini-swe-agent, which has one tool, bash. It ends with a command, and cannot show pictures."""

    def run(self, command: str) -> Call:
        """See `_MendingScript.run`."""
        return Call("bash", {"command": command})

    def end(self, text: str) -> Sequence[AnswerSlot]:
        """See `_MendingScript.end`."""
        return _say(text, [self.run("echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")])


class CodexPolicy(_MendingScript):
    """Plays Codex."""

    def run(self, command: str) -> Call:
        """See `_MendingScript.run`."""
        return Call("exec_command", {"cmd": command})

    def look_at_picture(self, prompt: str) -> Call:
        """See `_MendingScript.look_at_picture`."""
        return Call("view_image", {"path": PICTURE})


class OpencodePolicy(_MendingScript):
    """Plays opencode, which has tools to read and edit files, and wants absolute paths. It first asks for a title."""

    edit_mark = '"oldString"'

    def answer(self, prompt: str, images: Sequence[Pixels]) -> Sequence[AnswerSlot]:
        """See `ScriptedPolicy.answer`."""
        return _say("A failing test", []) if "Generate a title" in prompt else super().answer(prompt, images)

    def run(self, command: str) -> Call:
        """See `_MendingScript.run`."""
        return Call("bash", {"command": command, "description": "Runs the tests"})

    def look(self, file: str, prompt: str) -> Call:
        """See `_MendingScript.look`."""
        return Call("read", {"filePath": _absolute(file, prompt)})

    def edit(self, file: str, old: str, new: str, prompt: str) -> Call:
        """See `_MendingScript.edit`."""
        return Call("edit", {"filePath": _absolute(file, prompt), "oldString": old, "newString": new})


def _absolute(file: str, prompt: str) -> str:
    directory = re.search(r"Working directory: (\S+)", prompt)
    return f"{directory[1]}/{file}" if directory else file


def _say(text: str, calls: Sequence[Call]) -> Sequence[AnswerSlot]:
    return [AnswerSlot({_write(text, calls): 0.0})]


def _write(text: str, calls: Sequence[Call]) -> str:
    """Return a turn in the format of the model family qwen3."""
    written = [
        f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': call.arguments})}\n</tool_call>" for call in calls
    ]
    return "\n".join([text, *written])
