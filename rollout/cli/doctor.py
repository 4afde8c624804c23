"""`rollout doctor`: everything that can be known to be wrong before a run; with `--live`, what only engines know."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote, urlsplit

import anyio
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.errors import AdapterError
from rollout.config.load import Config, load_config
from rollout.doctor.engines import Finding, Verdict, examine
from rollout.engine.from_config import api_key
from rollout.environments.base import QUEUE
from rollout.errors import ConfigurationError, RolloutError
from rollout.log import log_warnings
from rollout.rundir.directory import RunDirectory
from rollout.serving.policies import load_policy
from rollout.tasks.orders import orders
from transports import QueueError, open_queue
from transports.urls import QueueOptions, without_password

_ROLLOUT_RECORDS, _ROLLOUT_BYTES = 3, 700
"""What the shortest rollout puts: that it began, one step, and how it ended. What others put, only a run can tell."""
_VERDICTS = {Verdict.OK: "[green]ok[/green]", Verdict.BAD: "[red]bad[/red]", Verdict.UNKNOWN: "[yellow]?[/yellow]"}


def doctor_command(path: Path, overrides: Sequence[str], *, live: bool) -> int:
    """Prints a line for everything that was examined; 2 for a bad configuration, 1 for a bad engine."""
    log_warnings()
    config = load_config(path, overrides)
    findings = [_examined(name, check, config) for name, check in _CHECKS]
    code = 2 if any(finding.verdict is Verdict.BAD for finding in findings) else 0
    if live and code:
        findings.append(Finding("engines", "not asked: a run would not get as far", Verdict.UNKNOWN))
    elif live:
        engines = anyio.run(_live, config)
        code = 1 if any(finding.verdict is Verdict.BAD for finding in engines) else 0
        findings += engines
    table = Table.grid(padding=(0, 2))
    for _ in ("verdict", "subject", "told"):
        table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(_VERDICTS[finding.verdict], finding.subject, escape(finding.told))
        if finding.cure:
            table.add_row("", "", f"[yellow]cure:[/yellow] {escape(finding.cure)}")
    Console().print(table, highlight=False)
    return code


def _examined(subject: str, check: Callable[[Config], str], config: Config) -> Finding:
    try:
        return Finding(subject, check(config))
    except (RolloutError, AdapterError, QueueError) as error:
        return Finding(subject, str(error), Verdict.BAD)


async def _live(config: Config) -> list[Finding]:
    return [finding async for finding in examine(config)]


def _configuration(config: Config) -> str:
    return f"{config.source} is valid; {config.environment_path}, digest {config.digest()}"


def _tasks(config: Config) -> str:
    if config.tasks.source == QUEUE:
        return f"put on {config.queue.tasks} by others"
    count = sum(1 for _ in orders(config.new_environment, config.tasks))
    return f"{count // config.tasks.group_size} tasks, {config.tasks.group_size} rollouts of each"


def _model(config: Config) -> str:
    adapter = RendererAdapter.open(config.model.path, config.model.renderer, config.model.template)
    layout = f", images {adapter.geometry.family}" if adapter.geometry else ", text only"
    return f"{config.model.path}: {adapter.tokenizer.vocab_size} tokens, renderer {config.model.renderer}{layout}"


def _queue(config: Config) -> str:
    """The URL alone: looking at a queue must not make one."""
    url = RunDirectory(config.run.directory / "RUN").url(config.queue.url, config.run.name)
    with TemporaryDirectory() as scratch:
        parts = urlsplit(url)
        limits = anyio.run(_limits, parts._replace(path=quote(scratch)).geturl() if parts.scheme == "file" else url)
    rollouts = 2 * config.policy.batch
    if not limits.admits(rollouts * _ROLLOUT_BYTES, rollouts * _ROLLOUT_RECORDS):
        raise ConfigurationError(
            f"queue.url: two batches of {config.policy.batch} rollouts (policy.batch) are more than its high water of "
            f"{limits.high_water_text}, however short the rollouts: a trainer that collects one while it trains on "
            "another would never get it. Raise high_water."
        )
    return (
        f"{without_password(url)}; two batches of {config.policy.batch} rollouts are below its high water while a "
        f"rollout has at most {limits.high_water // rollouts:,} bytes"
    )


async def _limits(url: str) -> QueueOptions:
    async with open_queue(url) as queue:
        return queue.limits


def _images(config: Config) -> str:
    for directory in config.images.allow:
        if not directory.is_dir():
            raise ConfigurationError(f"images.allow: {directory} is not a directory.")
    return (
        f"{config.images.mode}, at most {config.images.max_bytes:,} bytes and {config.images.max_pixels:,} pixels each"
    )


def _engine(config: Config) -> str:
    if config.engine.urls:
        api_key(config)
        return f"{', '.join(config.engine.urls)} (asked with --live)"
    load_policy(config.engine.embedded.policy)
    return f"embedded, the script {config.engine.embedded.policy}; no neural network"


_CHECKS: tuple[tuple[str, Callable[[Config], str]], ...] = (
    ("configuration", _configuration),
    ("tasks", _tasks),
    ("images", _images),
    ("engine", _engine),
    ("model", _model),
    ("queue", _queue),
)
