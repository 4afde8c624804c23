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
from rollout.doctor.engines import CheckResult, CheckStatus, check_engines
from rollout.engine.from_config import api_key_from_config
from rollout.environments.base import QUEUE_SOURCE
from rollout.errors import ConfigurationError, RolloutError
from rollout.log import log_warnings_to_stderr
from rollout.rundir.directory import RunDirectory
from rollout.serving.policies import load_policy
from rollout.tasks.orders import iter_orders
from transports import QueueError, open_queue
from transports.urls import QueueOptions, without_password

_MIN_RECORDS_PER_ROLLOUT, _MIN_BYTES_PER_ROLLOUT = 3, 700
"""What the shortest rollout puts: that it began, one step, and how it ended. What others put, only a run can tell."""
_STATUS_MARKUP = {
    CheckStatus.OK: "[green]ok[/green]",
    CheckStatus.BAD: "[red]bad[/red]",
    CheckStatus.UNKNOWN: "[yellow]?[/yellow]",
}


def doctor_command(path: Path, overrides: Sequence[str], *, live: bool) -> int:
    """Prints a line for everything that was examined; 2 for a bad configuration, 1 for a bad engine."""
    log_warnings_to_stderr()
    config = load_config(path, overrides)
    results = [_run_check(name, check, config) for name, check in _CHECKS]
    exit_code = 2 if any(result.status is CheckStatus.BAD for result in results) else 0
    if live and exit_code:
        results.append(CheckResult("engines", "not asked: a run would not get as far", CheckStatus.UNKNOWN))
    elif live:
        engine_results = anyio.run(_check_engines, config)
        exit_code = 1 if any(finding.status is CheckStatus.BAD for finding in engine_results) else 0
        results += engine_results
    table = Table.grid(padding=(0, 2))
    for _ in ("verdict", "subject", "told"):
        table.add_column(overflow="fold")
    for finding in results:
        table.add_row(_STATUS_MARKUP[finding.status], finding.subject, escape(finding.message))
        if finding.fix:
            table.add_row("", "", f"[yellow]cure:[/yellow] {escape(finding.fix)}")
    Console().print(table, highlight=False)
    return exit_code


def _run_check(subject: str, check: Callable[[Config], str], config: Config) -> CheckResult:
    try:
        return CheckResult(subject, check(config))
    except (RolloutError, AdapterError, QueueError) as error:
        return CheckResult(subject, str(error), CheckStatus.BAD)


async def _check_engines(config: Config) -> list[CheckResult]:
    return [result async for result in check_engines(config)]


def _check_configuration(config: Config) -> str:
    return f"{config.file_name} is valid; {config.environment_class_path}, digest {config.digest()}"


def _check_tasks(config: Config) -> str:
    if config.tasks.source == QUEUE_SOURCE:
        return f"put on {config.queue.tasks} by others"
    count = sum(1 for _ in iter_orders(config.new_environment, config.tasks))
    return f"{count // config.tasks.group_size} tasks, {config.tasks.group_size} rollouts of each"


def _check_model(config: Config) -> str:
    adapter = RendererAdapter.open(config.model.path, config.model.renderer, config.model.template)
    image_support = f", images {adapter.geometry.family}" if adapter.geometry else ", text only"
    return (
        f"{config.model.path}: {adapter.tokenizer.vocab_size} tokens, renderer {config.model.renderer}{image_support}"
    )


def _check_queue(config: Config) -> str:
    """The URL alone: looking at a queue must not make one."""
    url = RunDirectory(config.run.directory / "RUN").queue_url(config.queue.url, config.run.name)
    with TemporaryDirectory() as temporary_directory:
        parts = urlsplit(url)
        queue_options = anyio.run(
            _read_queue_options,
            parts._replace(path=quote(temporary_directory)).geturl() if parts.scheme == "file" else url,
        )
    rollouts_needed = 2 * config.policy.batch
    if not queue_options.admits(rollouts_needed * _MIN_BYTES_PER_ROLLOUT, rollouts_needed * _MIN_RECORDS_PER_ROLLOUT):
        raise ConfigurationError(
            f"queue.url: two batches of {config.policy.batch} rollouts (policy.batch) are more than its high water of "
            f"{queue_options.high_water_text}, however short the rollouts: a trainer that collects one while it trains "
            "on another would never get it. Raise high_water."
        )
    return (
        f"{without_password(url)}; two batches of {config.policy.batch} rollouts are below its high water while a "
        f"rollout has at most {queue_options.high_water // rollouts_needed:,} bytes"
    )


async def _read_queue_options(url: str) -> QueueOptions:
    async with open_queue(url) as queue:
        return queue.limits


def _check_images(config: Config) -> str:
    for directory in config.images.allow:
        if not directory.is_dir():
            raise ConfigurationError(f"images.allow: {directory} is not a directory.")
    return (
        f"{config.images.mode}, at most {config.images.max_bytes:,} bytes and {config.images.max_pixels:,} pixels each"
    )


def _check_engine_settings(config: Config) -> str:
    if config.engine.urls:
        api_key_from_config(config)
        return f"{', '.join(config.engine.urls)} (asked with --live)"
    load_policy(config.engine.embedded.policy)
    return f"embedded, the script {config.engine.embedded.policy}; no neural network"


_CHECKS: tuple[tuple[str, Callable[[Config], str]], ...] = (
    ("configuration", _check_configuration),
    ("tasks", _check_tasks),
    ("images", _check_images),
    ("engine", _check_engine_settings),
    ("model", _check_model),
    ("queue", _check_queue),
)
