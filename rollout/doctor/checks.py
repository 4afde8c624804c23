"""The checks that need no engine, and the function that runs all checks."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import anyio

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.errors import AdapterError
from rollout.config.environment_class import check_machine, require_usable
from rollout.config.load import Config
from rollout.config.model_directory import require_model, written_model_path
from rollout.doctor.engines.checking import check_engines
from rollout.doctor.model_type import check_model_type
from rollout.doctor.results import CheckResult, CheckStatus
from rollout.engine.from_config import api_key_from_config
from rollout.environments.base import QUEUE_SOURCE, Environment
from rollout.environments.multi_turn import MultiTurnEnvironment
from rollout.environments.tool_environment import unused_tools
from rollout.errors import ConfigurationError, RolloutError
from rollout.rundir.directory import RunDirectory
from rollout.rundir.queues import RunQueues
from rollout.serving.policies import load_policy
from rollout.tasks.checks import TASKS_OF_DOCTOR, check_tasks
from rollout.tasks.orders import iter_orders
from rollout.tasks.sources import count_rows_used
from transports import QueueError, open_queue
from transports.redaction import hide_passwords
from transports.urls import QueueOptions, split_url

_MIN_RECORDS_PER_ROLLOUT, _MIN_BYTES_PER_ROLLOUT = 3, 700
"""A rollout puts at least this on the queue: a started record, one step and a finished record."""


def run_checks(config: Config, *, live: bool, forward: bool = False) -> list[CheckResult]:
    """Run the checks that need no engine, and with `live` also the checks of the engines; return the results.

    With `forward`, the log-probs of each engine are compared with those of the checkpoint, too. This needs `live`.
    """
    results: list[CheckResult] = []
    for subject, check in _CHECKS:
        if subject == "tasks" and _any_bad(results):
            results.append(CheckResult(subject, "not checked: the environment cannot be used", CheckStatus.UNKNOWN))
        elif (result := _run_check(subject, check, config)) is not None:
            results.append(result)
    if _any_bad(results):
        if live:
            results.append(CheckResult("engines", "not checked: first correct the errors above", CheckStatus.UNKNOWN))
        return results
    return results + anyio.run(_check_engines, config, forward) if live else results


def _any_bad(results: list[CheckResult]) -> bool:
    return any(result.status is CheckStatus.BAD for result in results)


def _run_check(subject: str, check: Callable[[Config], str | None], config: Config) -> CheckResult | None:
    """Run one check; return None if there is nothing to say."""
    try:
        finding = check(config)
        return None if finding is None else CheckResult(subject, finding)
    except (RolloutError, AdapterError, QueueError) as error:
        return CheckResult(subject, str(error), CheckStatus.BAD, is_configuration_error=True)


async def _check_engines(config: Config, forward: bool) -> list[CheckResult]:
    return [result async for result in check_engines(config, forward=forward)]


def _check_configuration(config: Config) -> str:
    plain = "".join(f"; {place} has a password in plain text: write '${{NAME}}'" for place in config.plain_passwords)
    return f"{config.file_name} is valid; {config.environment_class_path}, digest {config.digest()}{plain}"


def _check_environment(config: Config) -> str:
    require_usable(config.new_environment, config.environment_class_path)
    environment_class = config.environment_class
    tools = environment_class.tools if issubclass(environment_class, MultiTurnEnvironment) else None
    names = ", ".join(tool["function"]["name"] for tool in tools or ())
    unused = ", ".join(tool.name for tool in unused_tools(environment_class))
    return (
        f"{config.environment_class_path} can be constructed"
        + (f"; tools {names}" if names else "")
        + (f"; these tools are not used, because `functions` does not name them: {unused}" if unused else "")
    )


def _check_machine(config: Config) -> str | None:
    environment_class = config.environment_class
    found = check_machine(environment_class, config.environment_settings)
    if found is None and environment_class.check_machine.__func__ is not Environment.check_machine.__func__:  # type: ignore[attr-defined]
        return f"{environment_class.__name__}.check_machine found nothing that is missing"
    return found


def _check_tasks(config: Config) -> str:
    if config.tasks.source == QUEUE_SOURCE:
        return f"from another program, on {hide_passwords(config.queue.tasks)}"
    orders = iter_orders(config.new_environment, config.tasks)
    first_orders = list(islice(orders, TASKS_OF_DOCTOR * config.tasks.group_size))
    check_tasks(config.new_environment, config.tasks, first_orders, TASKS_OF_DOCTOR)
    count = len(first_orders) + sum(1 for _ in orders)
    tasks = count // config.tasks.group_size
    if not tasks:
        source = "its own tasks()" if config.tasks.source is None else hide_passwords(config.tasks.source)
        raise ConfigurationError(f"there are no tasks: {source} has none. Give a source with rows, or yield tasks.")
    rows = count_rows_used(config.tasks, tasks)
    return f"{tasks} tasks, {config.tasks.group_size} rollouts of each{f'; {rows}' if rows is not None else ''}"


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
        return f"{', '.join(config.engine.urls)} (checked with --live)"
    load_policy(config.engine.embedded.policy)
    return f"embedded, the script {config.engine.embedded.policy}; no neural network"


def _check_model(config: Config) -> str:
    require_model(config.model.path, Path(config.file_name))
    adapter = RendererAdapter.open(config.model.path, config.model.renderer, config.model.template)
    image_support = f", images {adapter.geometry.family}" if adapter.geometry else ", text only"
    return (
        f"{written_model_path(config.model.path)}: vocabulary of {adapter.tokenizer.vocab_size:,} tokens, "
        f"renderer {config.model.renderer}{image_support}; {check_model_type(config)}"
    )


def _check_queue(config: Config) -> str:
    """Check the URL and the high water of the trajectories queue, without creating the queue; return the finding."""
    url = RunQueues(config, RunDirectory(config.run.directory / "RUN")).trajectories
    with TemporaryDirectory() as temporary_directory:
        parts = split_url(url)
        queue_options = anyio.run(
            _read_queue_options,
            parts._replace(path=quote(temporary_directory)).geturl() if parts.scheme == "file" else url,
        )
    rollouts_needed = 2 * config.policy.batch
    if not queue_options.admits(rollouts_needed * _MIN_BYTES_PER_ROLLOUT, rollouts_needed * _MIN_RECORDS_PER_ROLLOUT):
        raise ConfigurationError(
            f"queue.url: two batches of {config.policy.batch} rollouts (policy.batch) exceed the high water of "
            f"{queue_options.high_water_text}, even if the rollouts are short. A trainer that collects a batch while "
            "it trains on another would wait forever. Raise high_water."
        )
    return (
        f"{hide_passwords(url)}; two batches of {config.policy.batch} rollouts are below the high water if each "
        f"rollout has at most {queue_options.high_water // rollouts_needed:,} bytes"
    )


async def _read_queue_options(url: str) -> QueueOptions:
    async with open_queue(url) as queue:
        return queue.limits


_CHECKS: tuple[tuple[str, Callable[[Config], str | None]], ...] = (
    ("configuration", _check_configuration),
    ("environment", _check_environment),
    ("machine", _check_machine),
    ("tasks", _check_tasks),
    ("images", _check_images),
    ("engine", _check_engine_settings),
    ("model", _check_model),
    ("queue", _check_queue),
)
