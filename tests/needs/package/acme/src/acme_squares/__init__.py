"""A user's environment: it shows two pictures and asks for their colours."""

from PIL import Image

from rollout import Environment, Model, Score, Task

COLORS = ("red", "green", "blue", "yellow")


class Squares(Environment):
    async def run(self, task: Task, model: Model) -> Score:
        colors = [COLORS[task.seed % 4], COLORS[task.seed // 4 % 4]]
        pictures = [{"type": "image", "image": Image.new("RGB", (64, 64), color)} for color in colors]
        question = {"type": "text", "text": "Which colours are these, in order?"}
        first = await model.chat([{"role": "user", "content": [*pictures, question]}])
        return Score(reward=float(first.text.split() == colors))
