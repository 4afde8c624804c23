"""`rollout serve`: starts an engine as a server."""

import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from rollout.cli.command_group import CommandGroup
from rollout.cli.options import Debug
from rollout.cli.output import can_redraw
from rollout.serving.network.settings import Dtype, NetworkSettings

if TYPE_CHECKING:
    from rollout.serving.vllm import VllmSettings

_START_TIMEOUT_SECONDS = 1800.0
"""Enough to download a large checkpoint first."""
_LINE_INTERVAL_SECONDS = 10.0

ApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The environment variable with the API key that clients must send.", show_default=False
    ),
]

Name = Annotated[str | None, typer.Option(help="The model's name in requests; by default the last part of MODEL.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1. 0: any free port.")]
Allow = Annotated[list[Path] | None, typer.Option(help="A directory from which file:// images may come.")]

app = typer.Typer(cls=CommandGroup, help="Start an engine for rollouts.", no_args_is_help=True)


@app.command()
def embedded(
    model: Annotated[
        Path, typer.Argument(metavar="[MODEL]", help="The directory with tokenizer and processor config.")
    ] = Path("builtin:tiny"),
    name: Annotated[str, typer.Option(help="The name of the model for requests.")] = "tiny-qwen3-vl",
    port: Port = 0,
    allow: Allow = None,
    policy: Annotated[
        str, typer.Option(help="The script that answers, as module:Class; the module may be in this directory.")
    ] = "rollout.serving.policies:ColorPolicy",
    max_model_len: Annotated[int, typer.Option(min=16, help="The limit for the tokens of prompt and answer.")] = 32768,
    latency_ms: Annotated[float, typer.Option(min=0, help="Milliseconds to wait before every answer.")] = 0.0,
    api_key_env: ApiKeyEnv = None,
    debug: Debug = False,
) -> None:
    """Serve a *scripted* policy over HTTP, for demos and tests. It has no neural network.

    It answers POST /inference/v1/generate as vLLM does, but refuses requests for which vLLM would sample garbage. The
    script sees only the prompt and the pixels of one request. With temperature > 0, it gives wrong answers at a known
    rate.
    """
    from rollout.config.model_directory import resolve_model_path
    from rollout.import_path import search_last
    from rollout.log import log_warnings_to_stderr
    from rollout.serving.embedded import EmbeddedServer, EmbeddedSettings
    from rollout.serving.server import serve_until_signal

    search_last(os.getcwd())
    settings = EmbeddedSettings(
        model_dir=resolve_model_path(model, Path.cwd()),
        model_name=name,
        policy=policy,
        max_model_len=max_model_len,
        allowed_directories=tuple(allow or ()),
        latency_ms=latency_ms,
    )
    log_warnings_to_stderr()

    def announce(url: str) -> None:
        typer.echo(
            f"serving {name} with the script {policy} at {url}; it has no neural network\n"
            f"in the YAML:  engine: {{urls: [{url}]{_key_setting(api_key_env)}}}"
        )

    serve_until_signal(EmbeddedServer(settings, port=port, api_key=_read_key(api_key_env)), announce)


@app.command("transformers")
def network(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The directory of a checkpoint.", show_default=False)],
    name: Name = None,
    port: Port = 0,
    allow: Allow = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=16, help="The limit for the tokens of prompt and answer; by default MODEL's.")
    ] = None,
    weight_version: Annotated[str, typer.Option(help="The version of the weights until they are replaced.")] = "0",
    device: Annotated[str, typer.Option(help="The device that computes, by its name in torch.")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="The number type for weights and activations.")] = "float32",
    api_key_env: ApiKeyEnv = None,
    debug: Debug = False,
) -> None:
    """Serve MODEL, a Qwen3-VL, Qwen2.5-VL or Llama, with torch and transformers: for laptops, tests and small runs.

    It answers POST /inference/v1/generate as vLLM does, batches requests, and takes new weights like vLLM with
    VLLM_SERVER_DEV_MODE=1: POST /pause, /collective_rpc, /update_weight_version, /resume. Needs the extra `trainer`.
    """
    from rollout.config.model_directory import require_weights
    from rollout.images.processors import import_trainer_extra
    from rollout.log import log_warnings_to_stderr

    require_weights(str(model))
    log_warnings_to_stderr()
    api_key = _read_key(api_key_env)
    for package in ("torch", "transformers"):
        import_trainer_extra(package)
    from rollout.serving.network.engine import NetworkEngine
    from rollout.serving.server import EngineServer, serve_until_signal

    settings = NetworkSettings(
        model_dir=model,
        model_name=name,
        max_model_len=max_model_len,
        weight_version=weight_version,
        allowed_directories=tuple(allow or ()),
        device=device,
        dtype=dtype,
    )
    engine = NetworkEngine(settings)

    def announce(url: str) -> None:
        typer.echo(
            f"serving {engine.model_card.name} at {url}\n"
            "in the YAML:\n"
            f"  model: {{name: {engine.model_card.name}, path: {model.resolve()}}}\n"
            f"  engine: {{urls: [{url}]{_key_setting(api_key_env)}}}"
        )

    serve_until_signal(EngineServer(engine, weight_version=weight_version, port=port, api_key=api_key), announce)


@app.command()
def vllm(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's directory or name.", show_default=False)],
    flags: Annotated[
        list[str] | None, typer.Argument(metavar="[-- FLAGS]", help="More flags of `vllm serve`; they override ours.")
    ] = None,
    name: Name = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    media: Annotated[Path, typer.Option(help="The directory of all runs, with their file:// images.")] = Path("runs"),
    updates: Annotated[bool, typer.Option(help="Let trainers replace the weights.")] = True,
    api_key_env: ApiKeyEnv = None,
    without_key: Annotated[
        bool, typer.Option("--without-key", help="Let every machine that can reach the engine use it without a key.")
    ] = False,
    executable: Annotated[
        Path | None, typer.Option("--vllm", help="The path of the executable vllm, for example in another environment.")
    ] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Show the command instead of running it.")] = False,
    debug: Debug = False,
) -> None:
    """Serve MODEL with vLLM and the flags that rollouts need. When it is ready, print what to write in the YAML."""
    from rollout.config.model_directory import require_weights
    from rollout.serving.vllm import VllmSettings, default_key_variable

    require_weights(model)
    settings = VllmSettings(
        model=model,
        media_directory=media,
        name=name,
        host=host,
        port=port,
        updates=updates,
        api_key_env=api_key_env or default_key_variable(host, without_key=without_key, only_print=only_print),
        without_key=without_key,
        executable=executable,
        flags=tuple(flags or ()),
    )
    if only_print:
        typer.echo(settings.shell_command())
        return
    _serve_vllm(settings)


def _read_key(variable_name: str | None) -> str | None:
    from rollout.config.api_key import read_api_key

    return None if variable_name is None else read_api_key(variable_name, os.environ, named_by="--api-key-env")


def _key_setting(variable_name: str | None) -> str:
    return "" if variable_name is None else f", api_key_env: {variable_name}"


def _serve_vllm(settings: "VllmSettings") -> None:
    """Serve until SIGINT or SIGTERM. vLLM then has some seconds to end; a second Ctrl-C kills it.

    After a failure, the log file is kept.
    """
    from rollout.serving.vllm import VllmFailed, VllmServer

    log = _create_log(settings.port)
    server = VllmServer(settings, log)
    # SIGTERM interrupts every wait, like Ctrl-C; `finally` stops vLLM.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.start()
        with StartupStatus(log) as progress:
            server.wait_until_ready(_START_TIMEOUT_SECONDS, progress)
        _announce_vllm(settings, log)
        server.wait()
        is_stopped = False
    except KeyboardInterrupt:
        is_stopped = True
    finally:
        server.stop()
        signal.signal(signal.SIGTERM, previous)
        if not log.stat().st_size:  # vLLM was never started
            log.unlink()
    if not is_stopped:
        raise VllmFailed(f"vLLM ended by itself; see the reason in its log, {log}.")
    log.unlink(missing_ok=True)


def _create_log(port: int) -> Path:
    # Other users may write to this directory, too; mkstemp creates a file that did not exist before.
    descriptor, path = tempfile.mkstemp(prefix=f"rollout-vllm-{port}-", suffix=".log")
    os.close(descriptor)
    return Path(path)


def _announce_vllm(settings: "VllmSettings", log: Path) -> None:
    path = str(Path(settings.model).resolve()) if Path(settings.model).is_dir() else "DIRECTORY"
    typer.echo(
        f"serving {settings.served_name} at {settings.url}; its log is {log}\n"
        "in the YAML:\n"
        f"  model: {{name: {settings.served_name}, path: {path}, renderer: RENDERER}}\n"
        f"  engine: {{urls: [{settings.url}]{_key_setting(settings.api_key_env)}}}\n"
        f"  run: {{directory: {settings.media_directory.resolve()}}}\n"
        "where RENDERER is the model's chat format, such as qwen3-vl, or template for the checkpoint's own"
        f"{', and DIRECTORY holds its tokenizer and processor files' if path == 'DIRECTORY' else ''}"
    )


class StartupStatus:
    """Shows the seconds since the start and the last line of the log, on a terminal always in the same line."""

    def __init__(self, log: Path) -> None:
        self._console = Console(stderr=True)
        self._status = self._console.status(f"starting vLLM; its log is {log}")
        self._last_shown = 0.0

    def __enter__(self) -> "StartupStatus":
        if can_redraw(self._console):
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def __call__(self, seconds: float, line: str) -> None:
        """Show the seconds since the start and a line of the log."""
        text = f"starting vLLM, {seconds:.0f} s: {line.rpartition('] ')[2][:100]}"
        if can_redraw(self._console):
            self._status.update(escape(text))
        elif seconds - self._last_shown >= _LINE_INTERVAL_SECONDS:
            self._last_shown = seconds
            self._console.print(text, highlight=False, markup=False)
