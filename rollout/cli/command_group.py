"""Lists the commands in `--help` in the order of use, each with a whole sentence."""

from typing import Any

from typer.core import TyperGroup

ORDER = ("init", "doctor", "run", "inspect", "replay", "logs", "serve", "launch", "worker", "queue", "assets", "policy")
_NO_LIMIT = 10_000


class CommandGroup(TyperGroup):
    """A command with sub-commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands of `rollout` in the order of use, and other commands in the order of their definition."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the first sentence of each command's help. A long sentence takes several lines."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        rows = [(name, command.get_short_help_str(_NO_LIMIT)) for name, command in commands.items() if command]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
