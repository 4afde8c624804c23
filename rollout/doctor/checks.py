"""The checks that need no engine, and the function that runs all checks."""

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import anyio

from renderers_adapter.errors import AdapterError
from rollout.config.environment_class import check_machine, require_usable
from rollout.config.load import Config
from rollout.doctor.disk import PlannedRollouts, check_disk
from rollout.doctor.first_request import FIRST_REQUEST
from rollout.doctor.model import ModelChecks
from rollout.doctor.queues import check_other_queue, check_trajectories_queue
from rollout.doctor.results import CheckResult, CheckStatus, error_result
from rollout.engine.from_config import api_key_from_config
from rollout.environments.base import QUEUE_SOURCE, Environment
from rollout.environments.multi_turn import MultiTurnEnvironment
from rollout.errors import ConfigurationError, RolloutError
from rollout.tasks.checks import TASKS_OF_DOCTOR, check_tasks
from rollout.tasks.orders import iter_orders
from rollout.tasks.sources import count_rows_used
from transports import QueueError
from transports.redaction import hide_passwords

Finding = str | CheckResult | None
"""What a check found: a message that is proven, or a result with another status. None if there is nothing to say."""


def run_checks(
    config: Config, *, live: bool, forward: bool = False, on_progress: Callable[[str], object] = lambda line: None
) -> list[CheckResult]:
    """Run the checks that need no engine, and with `live` also the checks of the engines; return the results.

    With `forward`, the log-probs of each engine are compared with those of the checkpoint, too. This needs `live`.
    `on_progress` is called with a line before the checks of an engine.
    """
    results: list[CheckResult] = []
    tasks = _TaskCounter()
    for subject, check in _checks(tasks, ModelChecks(config, live=live)):
        if subject == "tasks" and _any_bad(results):
            results.append(CheckResult(subject, "not checked: the environment cannot be used", CheckStatus.UNKNOWN))
        elif subject == FIRST_REQUEST and _any_bad(results):
            continue  # no task is begun in a set-up that is wrong
        elif (result := _run_check(subject, check, config)) is not None:
            results.append(result)
    if not live:
        return results
    if any(result.is_configuration_error for result in results):
        return [*results, CheckResult("engines", "not checked: first correct the errors above", CheckStatus.UNKNOWN)]
    asked_later = [result for result in results if result.subject == "engine" and result.status is CheckStatus.NOTHING]
    return [result for result in results if result not in asked_later] + anyio.run(
        _check_engines, config, forward, on_progress
    )


def _any_bad(results: list[CheckResult]) -> bool:
    return any(result.status is CheckStatus.BAD for result in results)


def _run_check(subject: str, check: Callable[[Config], Finding], config: Config) -> CheckResult | None:
    """Run one check; return None if there is nothing to say."""
    try:
        finding = check(config)
        return CheckResult(subject, finding) if isinstance(finding, str) else finding
    except (RolloutError, AdapterError, QueueError) as error:
        return error_result(subject, error)


async def _check_engines(config: Config, forward: bool, on_progress: Callable[[str], object]) -> list[CheckResult]:
    from rollout.doctor.engines.checking import check_engines

    return [result async for result in check_engines(config, forward=forward, on_progress=on_progress)]


def _check_configuration(config: Config) -> str:
    plain = "".join(f"; {place} has a password in plain text: write '${{NAME}}'" for place in config.plain_passwords)
    return f"{config.file_name} is valid; {config.environment_class_path}, digest {config.digest()}{plain}"


def _check_environment(config: Config) -> str:
    from rollout.environments.tool_environment import unused_tools

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


def check_this_machine(config: Config) -> str | None:
    """Check that this machine has what the environment needs; return the finding."""
    environment_class = config.environment_class
    found = check_machine(environment_class, config.environment_settings)
    if found is None and environment_class.check_machine.__func__ is not Environment.check_machine.__func__:  # type: ignore[attr-defined]
        return f"{environment_class.__name__}.check_machine found nothing that is missing"
    return found


class _TaskCounter:
    """Checks and counts the tasks.

    Attributes:
        rollouts: the number of rollouts of all tasks; None before the check, or if another program puts the orders.
    """

    def __init__(self) -> None:
        self.rollouts: int | None = None

    def check(self, config: Config) -> Finding:
        """Check the first tasks, and count all of them; return the finding."""
        if config.tasks.source == QUEUE_SOURCE:
            url = hide_passwords(config.queue.tasks)
            return CheckResult("tasks", f"another program puts the orders on {url}", CheckStatus.NOTHING)
        orders = iter_orders(config.new_environment, config.tasks)
        first_orders = list(islice(orders, TASKS_OF_DOCTOR * config.tasks.group_size))
        check_tasks(config.new_environment, config.tasks, first_orders, TASKS_OF_DOCTOR)
        self.rollouts = len(first_orders) + sum(1 for _ in orders)
        tasks = self.rollouts // config.tasks.group_size
        if not tasks:
            source = "its own tasks()" if config.tasks.source is None else hide_passwords(config.tasks.source)
            raise ConfigurationError(f"there are no tasks: {source} has none. Give a source with rows, or yield tasks.")
        rows = count_rows_used(config.tasks, tasks)
        is_checked = config.environment_class.check_task is not Environment.check_task
        return (
            f"{tasks} tasks, {config.tasks.group_size} rollouts of each"
            + (f"; {rows}" if rows is not None else "")
            + (f"; check_task has seen the first {TASKS_OF_DOCTOR:,}" if is_checked and tasks > TASKS_OF_DOCTOR else "")
        )

    def check_space(self, config: Config) -> Finding:
        """Check that all rollouts fit on the disk; return the finding."""
        return check_disk(config.run.directory, [PlannedRollouts(config, self.rollouts)])


def check_images(config: Config) -> str:
    """Check that the directories of images can be read; return the finding."""
    for directory in config.images.allow:
        if not os.path.isdir(directory):
            raise ConfigurationError(f"images.allow: {directory} is not a directory.")
        if not os.access(directory, os.R_OK | os.X_OK):
            raise ConfigurationError(f"images.allow: this user may not read {directory}.")
    return (
        f"{config.images.mode}, at most {config.images.max_bytes:,} bytes and {config.images.max_pixels:,} pixels each"
    )


def check_engine_settings(config: Config) -> Finding:
    """Check the key of the engines, or what the embedded engine reads at its start; return the finding. Ask none."""
    if config.engine.urls:
        api_key_from_config(config)
        return CheckResult("engine", f"{', '.join(config.engine.urls)}: only --live asks it", CheckStatus.NOTHING)
    if not config.model.path.is_dir():
        return CheckResult("engine", "embedded: there is no model to serve", CheckStatus.NOTHING)
    from rollout.serving.embedded import EmbeddedSettings, ScriptedEngine

    ScriptedEngine(EmbeddedSettings(model_dir=config.model.path, policy=config.engine.embedded.policy))
    return f"embedded, the script {config.engine.embedded.policy}; no neural network"


def _checks(tasks: _TaskCounter, model: ModelChecks) -> Iterator[tuple[str, Callable[[Config], Finding]]]:
    """Yield each check with its subject, in their order."""
    yield "configuration", _check_configuration
    yield "environment", _check_environment
    yield "machine", check_this_machine
    yield "tasks", tasks.check
    yield "images", check_images
    yield "engine", check_engine_settings
    yield "model", lambda config: model.check_files()
    yield FIRST_REQUEST, lambda config: model.check_first_request()
    yield "tools", lambda config: model.check_tools()
    yield "calls", lambda config: model.check_calls()
    yield "reasoning", lambda config: model.check_reasoning()
    yield "turns", lambda config: model.describe_turns()
    yield "queue", lambda config: check_trajectories_queue(config, _future_run(config))
    yield "queue.tasks", lambda config: check_other_queue(config, "tasks", _future_run(config))
    yield "queue.control", lambda config: check_other_queue(config, "control", _future_run(config))
    yield "disk", tasks.check_space


def _future_run(config: Config) -> Path:
    """Return a path in the place of the directory that a run would have."""
    return config.run.directory / "RUN"
