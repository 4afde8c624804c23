"""The checks that `rollout launch` makes before it creates a run or starts a worker.

They are the checks of `rollout doctor` that are fast, and that hold for the machine of the launch. Loading the
configurations has created the environments before. The launch itself lists the tasks, and then checks with `check_disk`
whether their rollouts fit on the disk.
"""

from collections.abc import Sequence
from pathlib import Path

from renderers_adapter.creation import renderer_factory
from renderers_adapter.families import get_family
from renderers_adapter.special_text import MaskingTokenizer
from renderers_adapter.tokenizer import load_tokenizer
from rollout.config.load import Config
from rollout.config.model_directory import require_model
from rollout.config.model_type import check_model_type
from rollout.config.renderer_options import renderer_options
from rollout.doctor.checks import check_engine_settings, check_images, check_this_machine
from rollout.doctor.queues import can_be_asked, check_other_queue, check_trajectories_queue
from rollout.doctor.results import CheckResult, CheckStatus
from rollout.doctor.template_probe import TemplateProbe
from rollout.doctor.template_prompt import check_prompt
from rollout.doctor.template_tools import check_tools, declares_tools
from rollout.errors import ConfigurationError
from rollout.rundir.manifest import LaunchConfig
from transports.redaction import hide_passwords


def check_before_launch(
    launch_configs: Sequence[LaunchConfig], run_directory: Path | None, *, has_own_workers: bool
) -> list[str]:
    """Check what is fast to check; return a line for each check that could not be made.

    Args:
        launch_configs: the configurations of the launch.
        run_directory: the directory of the run; None if a new one will be chosen.
        has_own_workers: whether the launch starts workers on this machine. Otherwise, what workers need is elsewhere.

    Raises:
        RolloutError, QueueError: something is wrong. The exit code is the one of `rollout doctor`.
    """
    warnings: dict[str, None] = {}  # environments may share a queue
    for launch_config in launch_configs:
        config = launch_config.config
        _refuse_memory_queues(config)
        if has_own_workers:
            # Otherwise, each worker would fail with these errors.
            require_model(config.model.path, launch_config.file)
            check_model_type(config.model)
            _check_renderer(config)
            check_this_machine(config)
            check_images(config)
            check_engine_settings(config)
        for result in _check_queues(config, run_directory or config.run.directory / "RUN"):
            if result.status is CheckStatus.UNKNOWN:
                warnings[f"{result.subject} was not checked: {result.message}"] = None
    return list(warnings)


def _check_queues(config: Config, run_directory: Path) -> list[CheckResult]:
    """Check the queues. Leave out a transport that cannot be asked, because the launch opens it before its workers."""
    results: list[CheckResult | None] = []
    if can_be_asked(config.queue.url):
        results.append(check_trajectories_queue(config, run_directory))
    if can_be_asked(config.queue.tasks):
        results.append(check_other_queue(config, "tasks", run_directory))
    if can_be_asked(config.queue.control):
        results.append(check_other_queue(config, "control", run_directory))
    return [result for result in results if result is not None]


def _check_renderer(config: Config) -> None:
    """Check what needs no import of the `renderers` package, which takes more than a second."""
    model = config.model
    family = get_family(model.renderer)
    create_renderer = renderer_factory(family, model.path, renderer_options(model))
    if not family.uses_checkpoint_template:
        return
    create_renderer(MaskingTokenizer(load_tokenizer(model.path)))
    probe = TemplateProbe.of_model(model)
    check_prompt(probe)
    tools = check_tools(probe, declared=declares_tools(config), requested=None)
    if tools.status is CheckStatus.BAD:
        raise ConfigurationError(f"{tools.message}. To correct it, {tools.fix}.")


def _refuse_memory_queues(config: Config) -> None:
    for key, url in (("queue.url", config.queue.url), ("queue.tasks", config.queue.tasks)):
        if url.startswith("memory:"):
            raise ConfigurationError(
                f"{key} is {hide_passwords(url)}, but workers are other processes, and no other process can reach a "
                "memory queue. Use file:// or redis://, or `rollout run`, which is one process."
            )
