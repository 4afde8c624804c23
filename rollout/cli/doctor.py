"""`rollout doctor`: everything that can be known to be wrong before a run."""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.errors import AdapterError
from rollout.config import Config, load_config
from rollout.errors import RolloutError
from rollout.run import trajectories_url
from transports import QueueError, open_queue


def doctor_command(path: Path, overrides: Sequence[str]) -> int:
    config = load_config(path, overrides)
    checks: list[tuple[str, Callable[[Config], str]]] = [
        ("configuration", _configuration),
        ("tasks", _tasks),
        ("model", _model),
        ("queue", _queue),
    ]
    table = Table.grid(padding=(0, 2))
    failed = 0
    for name, examine in checks:
        try:
            verdict, told = "[green]ok[/green]", examine(config)
        except (RolloutError, AdapterError, QueueError) as error:
            failed += 1
            verdict, told = "[red]bad[/red]", str(error)
        table.add_row(verdict, name, escape(told))
    Console().print(table, highlight=False)
    return 2 if failed else 0


def _configuration(config: Config) -> str:
    return f"{config.source} is valid; {config.environment_path}, digest {config.digest()}"


def _tasks(config: Config) -> str:
    environment = config.environment(config.settings)
    count = sum(1 for _ in environment.tasks(config.tasks))
    return f"{count} tasks, {config.tasks.group_size} rollouts of each"


def _model(config: Config) -> str:
    adapter = RendererAdapter.open(config.model.path, config.model.renderer)
    layout = f", images {adapter.geometry.family}" if adapter.geometry else ", text only"
    return f"{config.model.path}: {adapter.tokenizer.vocab_size} tokens, renderer {config.model.renderer}{layout}"


def _queue(config: Config) -> str:
    url = trajectories_url(config, config.run.directory / "RUN")
    open_queue(url)
    return url
