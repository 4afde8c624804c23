"""Each turn shows a picture and asks in which corner the red disc is."""

import random
from typing import Any, ClassVar

from PIL import Image, ImageDraw
from rollout import Environment, EnvironmentSettings, Model, Score, Task

CORNERS = {
    "top left": (16, 16),
    "top right": (80, 16),
    "bottom left": (16, 80),
    "bottom right": (80, 80),
}
QUESTION = f"In which corner is the red disc: {', '.join(CORNERS)}?"


class DiscSettings(EnvironmentSettings):
    """The keys of the section `environment` in the YAML."""

    pictures: int = 3  # the number of pictures in a rollout


class FindDisc(Environment):
    """Keeps all pictures in one conversation; a request also has the earlier ones."""

    Settings: ClassVar[type[EnvironmentSettings]] = DiscSettings
    settings: DiscSettings

    async def run(self, task: Task, model: Model) -> Score:
        """Play one rollout, and return its score. The seed determines the pictures."""
        rng = random.Random(task.seed)
        messages: list[dict[str, Any]] = []
        right = 0
        for _ in range(self.settings.pictures):
            corner = rng.choice(list(CORNERS))
            picture = {"type": "image", "image": draw(corner)}
            question = {"type": "text", "text": QUESTION}
            messages.append({"role": "user", "content": [picture, question]})
            reply = await model.chat(messages)
            messages.append(reply.message)
            right += reply.text.strip(" .").lower() == corner
        return Score(right / self.settings.pictures, metrics={"right": right})


def draw(corner: str) -> Image.Image:
    """Return a grey picture with a red disc in this corner."""
    picture = Image.new("RGB", (128, 128), "grey")
    left, top = CORNERS[corner]
    ImageDraw.Draw(picture).ellipse((left, top, left + 32, top + 32), fill="red")
    return picture
