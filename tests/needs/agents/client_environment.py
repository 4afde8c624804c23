"""An environment that plays a client of the table, whatever its model says, and scores its exit code."""

import tempfile
from pathlib import Path

from rollout import Environment, Model, Score, Task
from tests.needs.agents.clients import CLIENTS, TASK
from tests.needs.agents.playing import play
from tests.needs.agents.scripted_agent import ClientSettings


class AnyAnswer(Environment):
    """Plays one client in a home of its own. The reward is 1 if its exit code is 0."""

    Settings = ClientSettings
    settings: ClientSettings

    async def run(self, task: Task, model: Model) -> Score:
        """Play the client to its end."""
        client = next(client for client in CLIENTS if client.name == self.settings.client)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            async with model.endpoint() as endpoint:
                ended = await play(client.command(endpoint, Path(directory) / "client-home", TASK), endpoint)
        return Score(float(ended.code == 0), metrics={"exit_code": ended.code})
