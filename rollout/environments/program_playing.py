"""Plays one rollout of a program: prepares its workspace, runs it to its end, and scores its work."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rollout.environments.base import Model, Score, change_score
from rollout.environments.endpoint import Endpoint, EndpointSocket
from rollout.environments.program_checks import require_directory
from rollout.environments.program_errors import (
    ProgramFailed,
    ScoreCommandFailed,
    last_lines,
)
from rollout.environments.program_scoring import ScoreFunction, parse_score_output, score_from_posted
from rollout.environments.program_settings import PROGRAM_SCORES_ITSELF, ProgramSettings, ScoreCommand
from rollout.environments.program_texts import SCORE_KEY, ProgramTexts, program_key, require_short_arguments
from rollout.errors import ConfigurationError
from rollout.programs.agents.base import AgentCall
from rollout.programs.kept_files import keep_files
from rollout.programs.output import OUTPUT_NAME, SCORE_OUTPUT_NAME
from rollout.programs.process import (
    EndReason,
    ProgramCannotStart,
    ProgramEnd,
    ProgramLimits,
    ProgramProcess,
    run_program,
)
from rollout.programs.sandboxes.base import SandboxedCommand
from rollout.programs.sandboxes.registry import open_sandbox
from rollout.programs.unsafe_entries import remove_unsafe_entries
from rollout.programs.workspace import Workspace, copy_tree, write_files
from rollout.records.endings import RolloutLimit
from rollout.records.task import Task

_T = TypeVar("_T")

_SIGNAL_CODES = 128

KEPT_NAME = "kept"
"""The directory in the attempt's directory with the files that were kept."""
LEFT_OUT_NAME = "not-kept.txt"
"""The file in the attempt's directory that says which files were not kept."""


class PlayedProgram:
    """One rollout of a program."""

    def __init__(self, settings: ProgramSettings, task: Task, workspace: Workspace, artifacts: Path) -> None:
        self._settings = settings
        self._task = task
        self._workspace = workspace
        self._artifacts = artifacts
        self._sandbox = open_sandbox(settings.sandbox)
        self._inside = self._sandbox.directories(workspace)
        self._values: Mapping[str, str] = {
            "workdir": str(self._inside.work),
            "home": str(self._inside.home),
            "python": sys.executable,
            "config_dir": str(settings.config_dir),
        }
        self._texts = ProgramTexts(task, self._values)

    async def play(self, model: Model, score_function: ScoreFunction | None) -> Score:
        """Run the program, and score its work when nothing of it runs any more."""
        settings, sandbox = self._settings, self._sandbox
        socket = None
        if sandbox.uses_socket:
            assert sandbox.gateway_address is not None
            socket = EndpointSocket(self._workspace.gateway_socket, sandbox.gateway_address)
        scores_itself = settings.score == PROGRAM_SCORES_ITSELF
        async with model.endpoint(socket=socket, accept_reward=scores_itself) as endpoint:
            try:
                sandbox.check_address(urlsplit(endpoint.base_url).netloc)
            except ConfigurationError as error:
                raise ProgramCannotStart(str(error)) from None
            process = await run_in_thread(partial(self._prepare, endpoint))
            end = await self._run(program_key(settings), process)
        if not endpoint.transcript.turns:  # after a turn, the program itself has printed what looks like a failed start
            await run_in_thread(partial(self._require_start, end, process.output))
        self._require_success(end)
        if isinstance(settings.score, ScoreCommand):
            score = await self._run_score_command(settings.score)
        elif scores_itself:
            score = score_from_posted(endpoint.posted_reward)
        else:
            assert score_function is not None
            await run_in_thread(partial(remove_unsafe_entries, self._workspace.work))
            score = await score_function.call(self._task, self._workspace.work, endpoint.transcript, end.exit_code)
        measured = {"exit_code": float(end.exit_code), "program_seconds": round(end.seconds, 3)}
        changes: dict[str, Any] = {"metrics": {**measured, **score.metrics}}
        if end.reason is EndReason.TIMEOUT:
            changes["limit"] = RolloutLimit.TIME
        return change_score(score, **changes)

    def keep_files(self) -> None:
        """Copy the files to keep into the attempt's directory."""
        keep = self._settings.keep
        if keep.files:
            left_out = keep_files(
                self._workspace.work, self._artifacts / KEPT_NAME, keep.files, max_bytes=keep.max_bytes
            )
            if left_out is not None:
                (self._artifacts / LEFT_OUT_NAME).write_text(f"{left_out}\n")

    def _prepare(self, endpoint: Endpoint) -> ProgramProcess:
        """Fill the workspace, and return the process to run. It blocks."""
        settings, workspace = self._settings, self._workspace
        values = {
            "base_url": endpoint.base_url,
            "anthropic_base_url": endpoint.anthropic_base_url,
            "model": endpoint.model,
        }
        texts = self._texts = ProgramTexts(self._task, {**self._values, **values})
        if settings.template is not None:
            copy_tree(self._directory("environment.template", settings.template), workspace.work)
        write_files(texts.fill_all("environment.files", settings.files), workspace.work)
        stdin = texts.fill("environment.stdin", settings.stdin)
        agent_environ: Mapping[str, str] = {}
        if (agent := settings.known_agent) is not None:
            call = AgentCall(
                prompt=texts.fill("environment.prompt", settings.prompt),
                base_url=endpoint.base_url,
                anthropic_base_url=endpoint.anthropic_base_url,
                model=endpoint.model,
                work=self._inside.work,
                home=self._inside.home,
                context_tokens=settings.context_tokens,
            )
            prepared = agent.prepare(call)
            write_files(prepared.files, workspace.home)
            agent_environ, stdin = prepared.environ, stdin or prepared.stdin
            executable = texts.fill("environment.executable", settings.executable or agent.executable)
            arguments = texts.arguments("environment.arguments", settings.arguments)
            argv = (executable, *prepared.arguments, *arguments, *prepared.last_arguments)
        else:
            argv = texts.arguments("environment.command", settings.command)
        require_short_arguments(program_key(settings), argv)
        environ = self._environ({**endpoint.environ, **agent_environ})
        read = texts.named_paths(
            program_key(settings), (*settings.command, *settings.arguments, settings.executable or "")
        )
        return self._process(argv, environ, read, OUTPUT_NAME, settings.timeout, stdin, with_gateway=True)

    def _process(
        self,
        argv: tuple[str, ...],
        environ: Mapping[str, str],
        read: tuple[Path, ...],
        output_name: str,
        seconds: float,
        stdin: str = "",
        *,
        with_gateway: bool,
    ) -> ProgramProcess:
        """Return the process of a command in the sandbox."""
        limits, workspace = self._settings.limits, self._workspace
        wrapped = self._sandbox.wrap(
            SandboxedCommand(
                argv=argv,
                environ=environ,
                workspace=workspace,
                gateway_socket=workspace.gateway_socket if with_gateway and self._sandbox.uses_socket else None,
                memory_bytes=limits.memory_bytes,
                processes=limits.processes,
                read=read,
            )
        )
        return ProgramProcess(
            argv=wrapped.argv,
            environ=wrapped.environ,
            directory=workspace.work,
            workspace=workspace,
            output=self._artifacts / output_name,
            limits=ProgramLimits(seconds, limits.output_bytes, limits.memory_bytes, limits.processes),
            stdin=stdin,
            cleanup=wrapped.cleanup,
        )

    def _environ(self, more: Mapping[str, str]) -> dict[str, str]:
        """Return all variables of a process. Nothing else of the worker's environment reaches it."""
        own = self._texts.fill_all("environment.env", self._settings.env)
        base = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}
        return {**base, **self._inside.environ(), **self._workspace.mark, **more, **own}

    def _directory(self, key: str, text: str) -> Path:
        """Return the path of a directory of the user; a relative one begins at the directory of the YAML file."""
        assert self._settings.config_dir is not None
        return require_directory(key, self._settings.config_dir / self._texts.fill(key, text))

    async def _run(self, key: str, process: ProgramProcess) -> ProgramEnd:
        """Run a program. `key` is the key of its command in the YAML, for errors."""
        try:
            return self._with_signal(await run_program(process))
        except ProgramCannotStart as error:
            raise ProgramCannotStart(f"{key}: {error}") from error

    def _with_signal(self, end: ProgramEnd) -> ProgramEnd:
        """Return how a program ended, with the number of its signal as it is without a sandbox."""
        number = end.exit_code - _SIGNAL_CODES
        if self._sandbox.signals_are_codes and 0 < number < signal.NSIG:
            return replace(end, exit_code=-number)
        return end

    def _require_start(self, end: ProgramEnd, output: Path) -> None:
        """Raise ProgramCannotStart if the sandbox could not start the program. It blocks."""
        if end.reason is EndReason.EXITED and end.exit_code != 0:
            problem = self._sandbox.describe_start_failure(end.exit_code, output.read_text("utf-8", "replace"))
            if problem is not None:
                raise ProgramCannotStart(
                    f"{program_key(self._settings)}: the sandbox {self._settings.sandbox.kind} cannot start the "
                    f"program: {problem}. Check that the program, and the interpreter in its first line, exist in the "
                    "sandbox and are executable."
                )

    def _require_success(self, end: ProgramEnd) -> None:
        settings, output = self._settings, self._artifacts / OUTPUT_NAME
        if end.reason is EndReason.TIMEOUT:
            if settings.on_timeout == "score":
                return
            problem = f"did not end within {settings.timeout:g} s (environment.timeout), and was ended"
        elif end.reason is EndReason.OUTPUT:
            problem = f"printed more than {settings.limits.output_bytes:,} bytes (limits.output_bytes), and was ended"
        elif end.reason is EndReason.MEMORY:
            problem = f"needed more than {settings.limits.memory_bytes:,} bytes of memory (limits.memory_bytes)"
        elif not _is_failure(end.exit_code, settings.failures):
            return
        elif end.exit_code < 0:
            problem = f"was ended by the signal {-end.exit_code}"
        else:
            problem = f"ended with the exit code {end.exit_code}"
        if end.refused_processes:
            problem += f"; it was refused processes beyond {settings.limits.processes} (limits.processes)"
        raise ProgramFailed(f"the program {problem}. {last_lines(output)}", end)

    async def _run_score_command(self, score: ScoreCommand) -> Score:
        output = self._artifacts / SCORE_OUTPUT_NAME
        process = await run_in_thread(partial(self._prepare_score, score))
        end = await self._run(SCORE_KEY, process)
        if end.reason is EndReason.TIMEOUT:
            problem = f"did not end within {score.timeout:g} s (score.timeout)"
        elif end.reason is not EndReason.EXITED:
            problem = f"was ended, because it used too much of: {end.reason.value}"
        elif end.exit_code != 0:
            problem = f"ended with the exit code {end.exit_code}"
        else:
            return parse_score_output(await run_in_thread(partial(output.read_text, "utf-8", "replace")))
        raise ScoreCommandFailed(f"the score command {problem}. {last_lines(output)}")

    def _prepare_score(self, score: ScoreCommand) -> ProgramProcess:
        self._workspace.renew_home()
        if score.template is not None:
            copy_tree(self._directory("environment.score.template", score.template), self._workspace.work)
        argv = self._texts.arguments(SCORE_KEY, score.command)
        read = self._texts.named_paths(SCORE_KEY, score.command)
        return self._process(argv, self._environ({}), read, SCORE_OUTPUT_NAME, score.timeout, with_gateway=False)


def _is_failure(exit_code: int, failures: str | tuple[int, ...]) -> bool:
    if failures == "none":
        return False
    if exit_code < 0 or failures == "nonzero":
        return exit_code != 0
    return exit_code in failures


async def run_in_thread(function: Callable[[], _T]) -> _T:
    """Run a function that blocks in a thread, and wait for it also when this rollout is cancelled."""
    running = asyncio.get_running_loop().run_in_executor(None, function)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
