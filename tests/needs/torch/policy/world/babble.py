"""An environment of three turns; only the sampled tokens matter."""

from rollout import Environment, Model, Score, Task
from rollout.records.messages import Message


class Babble(Environment):
    """Asks three times."""

    async def run(self, task: Task, model: Model) -> Score:
        messages: list[Message] = []
        for turn in range(3):
            messages.append({"role": "user", "content": f"{task.index}.{turn}?"})
            messages.append((await model.chat(messages)).message)
        return Score(1.0)
