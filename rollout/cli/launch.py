"""`rollout launch`: starts supervised workers for several environments, or writes files for a scheduler."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from rollout.cli.open_files import require_open_files
from rollout.cli.options import Debug, Json, Overrides
from rollout.cli.output import (
    describe_retries,
    list_means,
    print_errors,
    print_report,
    print_table,
    print_text_or_json,
    print_wrapped,
    warn_of_close_failures,
    warn_of_passwords,
    with_errors,
)
from rollout.cli.report_stream import report_stream

if TYPE_CHECKING:
    from rollout.launch.places import Place
    from rollout.launch.state import LaunchState
    from rollout.rundir.directory import RunDirectory
    from rollout.rundir.outcomes import DistinctError


PlaceName = Literal["here", "ray", "slurm", "k8s"]


def launch(
    configs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="CONFIG...", help="One YAML for each environment.", show_default=False),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Worker processes for each environment. 0: you start them yourself.")
    ] = 1,
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN_DIR", help="Start the run in this directory, or continue the run that is there."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN_DIR", help="Continue this run instead of starting one.")
    ] = None,
    on: Annotated[PlaceName, typer.Option(help="Where the workers run.")] = "here",
    render: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="With --on slurm or k8s: write the files for the scheduler there."),
    ] = None,
    image: Annotated[str | None, typer.Option(help="With --on k8s: the container image with rollout.")] = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Play all rollouts of every CONFIG with supervised worker processes; a trainer reads the queue meanwhile.

    SIGTERM and the first Ctrl-C drain the workers; a second Ctrl-C ends them at once. --resume plays the rollouts that
    did not finish.

    Exits with 0 after success or SIGTERM. Exits with 1 if it failed, if no rollout got a reward, or if more failed than
    run.max_failed allows. Exits with 2 for a bad configuration, and with 130 after Ctrl-C.
    """
    report_stream.reserve()
    require_open_files()
    if render is not None or image is not None or on in ("slurm", "k8s"):
        if run is not None or resume is not None:
            raise typer.BadParameter(
                "--render prepares a new run with the name of its directory, so leave out --run and --resume."
            )
        plan = _write_scheduler_files(
            configs or [], overrides or [], workers=workers, on=on, directory=render, image=image
        )
        text = f"the run will be in {plan['run_dir']}\nstart it with: {plan['start']}"
        print_text_or_json(text, plan, as_json=as_json)
    else:
        state = _prepare_launch(configs or [], overrides or [], workers=workers, run=run, resume=resume, on=on)
        raise typer.Exit(_launch(state, as_json=as_json))


def _prepare_launch(
    paths: Sequence[Path], overrides: Sequence[str], *, workers: int, run: Path | None, resume: Path | None, on: str
) -> "LaunchState":
    from rollout.doctor.before_launch import check_before_launch
    from rollout.errors import ConfigurationError
    from rollout.launch.state import LaunchState
    from rollout.paths import resolve_path
    from rollout.rundir.manifest import can_resume, load_usable_configs, resume_run, save_run

    if bool(paths) == (resume is not None) or (resume is not None and run is not None):
        raise ConfigurationError("rollout launch: give the YAML of each environment, or --resume RUN_DIR alone.")
    if run is not None and can_resume(run):
        resume = run
    directory: RunDirectory | None = None
    if resume is not None:
        directory, launch_configs = resume_run(resume, overrides, paths)
    else:
        launch_configs = load_usable_configs(paths, overrides)
    warn_of_passwords([launch_config.config for launch_config in launch_configs])
    place = _open_place(on, workers * len(launch_configs))
    has_own_workers = workers > 0 and on == "here"
    run_path = directory.path if directory is not None else (run and resolve_path(run))
    for warning in check_before_launch(launch_configs, run_path, has_own_workers=has_own_workers):
        sys.stderr.write(f"rollout: {warning}\n")
    if directory is None:
        directory = save_run(launch_configs, run_path)
    return LaunchState(directory, launch_configs, workers, place, is_resumed=resume is not None)


def _open_place(on: str, workers: int) -> "Place":
    from rollout.errors import ConfigurationError
    from rollout.launch.local import LocalPlace

    if on != "ray":
        return LocalPlace()
    if not workers:
        raise ConfigurationError("rollout launch --on ray: --workers (for each environment) must be at least 1.")
    from rollout.launch.ray import RayPlace

    return RayPlace(workers)


def _launch(state: "LaunchState", *, as_json: bool) -> int:
    """Run the launch, print the summary, and return the exit code."""
    from rollout.cli.launch_screen import LaunchScreen
    from rollout.errors import RolloutError
    from rollout.launch.launch import run_launch
    from transports import QueueError

    screen = LaunchScreen(state, Console(stderr=True))
    failure: RolloutError | QueueError | None = None
    try:
        run_launch(state, screen.show)
    except (RolloutError, QueueError) as error:
        if not state.report()["rollouts"]:
            raise
        failure = error  # the summary of the finished rollouts is printed first
    for notice in state.notices:  # what came too late for the screen
        if not notice.is_wait:
            Console(stderr=True).print(notice.text, highlight=False, markup=False, soft_wrap=True)
    errors = state.failures()
    report = with_errors(state.report(), errors)
    print_report(report, partial(_print_summary, state, report, errors), failure, as_json=as_json)
    if screen.interrupted:
        return 130
    if report["rollouts"] and report["reward_mean"] is None:
        return 1  # rollouts ended, and none of them has a reward
    return 0 if state.stopping_early or report["rollouts"] == report["total"] else 1


def _print_summary(
    state: "LaunchState", report: Mapping[str, Any], errors: "Sequence[DistinctError]", console: Console
) -> None:
    from rollout.records.gateway_counts import summarize_gateway
    from rollout.records.prompt_counts import summarize_prompts
    from rollout.rundir.limits import warn_if_all_limited
    from rollout.rundir.missing_turns import warn_if_no_turns

    rows = []
    for environment in state.environments:
        totals = report["environments"][environment.name]
        status = ", ".join(f"{count} {what}" for what, count in sorted(totals["status"].items())) or "none finished"
        reward = "no reward" if totals["reward_mean"] is None else f"reward {totals['reward_mean']:.3f}"
        of_total = "" if environment.is_fed_externally else f" of {environment.total_rollouts}"
        work = f"{totals['turns']:,} turns, {totals['tokens']:,} tokens"
        named = list_means(totals["rewards"] | totals["metrics"])
        line = f"{totals['rollouts']}{of_total}  ({status})  {reward}{named}, {work}"
        rows.append((environment.name, line))
        if environment.rows_used is not None:
            rows.append(("", str(environment.rows_used)))
    rows.append(("prompts", summarize_prompts(state.outcomes.totals.prompts)))
    if (gateway := summarize_gateway(state.outcomes.totals.gateway)) is not None:
        rows.append(("gateway", gateway))
    deaths = (
        Counter(f"{death.environment}, {death.description}" for death in state.supervisor.deaths)
        if state.supervisor
        else {}
    )
    died = "".join(f", {count} died ({what})" for what, count in deaths.items())
    rows.append(("workers", f"{state.workers_per_environment} for each environment{died}"))
    rows.append(("repeated", describe_retries(report)))
    rows.append(("run", str(state.directory.path)))
    rows.append(("time", f"{state.elapsed_seconds:.1f} s" + ("  (stopped early)" if state.stopping_early else "")))
    print_table(console, [(f"[dim]{escape(name)}[/dim]", escape(value)) for name, value in rows])
    for environment in state.environments:
        totals = report["environments"][environment.name]
        config = environment.launch_config.config
        if (warning := warn_if_all_limited(totals["limits"], totals["status"], config)) is not None:
            print_wrapped(console, f"{environment.name}: {warning}", "yellow")
    if (warning := warn_of_close_failures(report)) is not None:
        print_wrapped(console, warning, "yellow")
    print_errors(console, errors, state.directory.path)
    for environment in state.environments:
        if (warning := warn_if_no_turns(report["environments"][environment.name])) is not None:
            print_wrapped(console, f"{environment.name}: {warning}", "yellow")
    if report["rollouts"] < report["total"]:
        console.print(f"continue with: rollout launch --resume {state.directory.path}", highlight=False, soft_wrap=True)


def _write_scheduler_files(
    paths: Sequence[Path],
    overrides: Sequence[str],
    *,
    workers: int,
    on: str,
    directory: Path | None,
    image: str | None,
) -> dict[str, str]:
    """Write the files for Slurm or Kubernetes, and return the run's directory and the command that starts the run."""
    from rollout.deploy import kubernetes, slurm
    from rollout.deploy.plan import plan_run
    from rollout.errors import ConfigurationError
    from rollout.paths import resolve_path
    from rollout.rundir.private_files import write_private_file

    if directory is None or on not in ("slurm", "k8s"):
        raise ConfigurationError(
            "rollout launch: --on slurm and --on k8s need --render DIR, and --render needs one of them."
        )
    if workers < 1:
        raise ConfigurationError("rollout launch --render: --workers (for each environment) must be at least 1.")
    if (on == "k8s") != (image is not None):
        raise ConfigurationError("rollout launch: --on k8s needs --image; without --on k8s, leave out --image.")
    plan = plan_run(resolve_path(directory).name, paths, overrides, workers)
    warn_of_passwords([group.config for group in plan.worker_groups])
    files = slurm.render(plan) if image is None else kubernetes.render(plan, image)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            mode = 0o700 if text.startswith("#!") else 0o600  # a configuration may contain a password
            write_private_file(directory / name, text.encode(), mode=mode)
    except OSError as error:
        raise ConfigurationError(f"{directory}: cannot be written: {error.strerror}.") from None
    start_command = f"{directory}/submit.sh" if image is None else f"kubectl apply -f {directory}/"
    return {"run_dir": str(plan.run_directory), "start": start_command}
