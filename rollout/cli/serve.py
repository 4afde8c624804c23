"""`rollout serve`: engines as servers of their own."""

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from rollout.cli.command_group import CommandGroup
from rollout.cli.options import Debug
from rollout.cli.output import can_redraw
from rollout.serving.network.settings import Dtype

if TYPE_CHECKING:
    from rollout.serving.embedded import EmbeddedSettings
    from rollout.serving.network.settings import NetworkSettings
    from rollout.serving.vllm import VllmSettings

_START_TIMEOUT_SECONDS = 1800.0
"""A large checkpoint may have to be downloaded first."""
_LINE_INTERVAL_SECONDS = 10.0

ApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Environment variable with the API key that clients must send.", show_default=False
    ),
]

app = typer.Typer(cls=CommandGroup, help="Start an engine that rollouts can be played against.", no_args_is_help=True)


@app.command()
def embedded(
    model: Annotated[
        Path, typer.Argument(metavar="[MODEL]", help="Directory with tokenizer and processor config.")
    ] = Path("builtin:tiny"),
    name: Annotated[str, typer.Option(help="The name under which the model is served.")] = "tiny-qwen3-vl",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    allow: Annotated[list[Path] | None, typer.Option(help="Directory that file:// images may come from.")] = None,
    policy: Annotated[
        str, typer.Option(help="The script that answers, as module:Class; the module may be in this directory.")
    ] = "rollout.serving.policies:ColorPolicy",
    max_model_len: Annotated[
        int, typer.Option(min=16, help="Longest prompt and completion together, in tokens.")
    ] = 32768,
    latency_ms: Annotated[float, typer.Option(min=0, help="Added to every answer, to look like a slow engine.")] = 0.0,
    api_key_env: ApiKeyEnv = None,
    debug: Debug = False,
) -> None:
    """Serve a *scripted* policy over HTTP, for demos and tests. No neural network is inside.

    It speaks vLLM's POST /inference/v1/generate strictly: what vLLM would answer with garbage, it answers with 400. The
    script sees the pixels of the images in one request, and nothing else; with temperature > 0 it errs at a known rate.
    """
    from rollout.config.model_directory import resolve_model_path
    from rollout.import_path import search_last
    from rollout.serving.embedded import EmbeddedSettings

    search_last(os.getcwd())
    settings = EmbeddedSettings(
        model_dir=resolve_model_path(model, Path.cwd()),
        model_name=name,
        policy=policy,
        max_model_len=max_model_len,
        allowed_directories=tuple(allow or ()),
        latency_ms=latency_ms,
    )
    _serve_embedded(settings, port=port, api_key_env=api_key_env)


@app.command("transformers")
def network(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Directory of a checkpoint.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="The name under which it is served; else MODEL's last part.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    allow: Annotated[list[Path] | None, typer.Option(help="Directory that file:// images may come from.")] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=16, help="Longest prompt and completion together, in tokens; else MODEL's own.")
    ] = None,
    weight_version: Annotated[str, typer.Option(help="What the weights are called until they are replaced.")] = "0",
    device: Annotated[str, typer.Option(help="Where torch computes, as it names it.")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="What torch computes in.")] = "float32",
    api_key_env: ApiKeyEnv = None,
    debug: Debug = False,
) -> None:
    """Serve MODEL, a Qwen3-VL or Qwen2.5-VL, by torch and transformers alone: for laptops, tests and small runs.

    It speaks vLLM's POST /inference/v1/generate strictly, batches requests, and takes new weights like vLLM with
    VLLM_SERVER_DEV_MODE=1: POST /pause, /collective_rpc, /update_weight_version, /resume. Needs the extra `trainer`.
    """
    from rollout.config.model_directory import require_weights
    from rollout.serving.network.settings import NetworkSettings

    require_weights(str(model))
    settings = NetworkSettings(
        model_dir=model,
        model_name=name,
        max_model_len=max_model_len,
        weight_version=weight_version,
        allowed_directories=tuple(allow or ()),
        device=device,
        dtype=dtype,
    )
    _serve_network(settings, port=port, api_key_env=api_key_env)


@app.command()
def vllm(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory or name of the model.", show_default=False)],
    flags: Annotated[
        list[str] | None, typer.Argument(metavar="[-- FLAGS]", help="Further flags of `vllm serve`; they win.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The name under which it is served; else MODEL's last part.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    media: Annotated[Path, typer.Option(help="Directory below which file:// images lie: that of the runs.")] = Path(
        "runs"
    ),
    updates: Annotated[bool, typer.Option(help="Let trainers replace its weights.")] = True,
    api_key_env: ApiKeyEnv = None,
    without_key: Annotated[
        bool, typer.Option("--without-key", help="Let every machine that reaches it use it, if there is no key.")
    ] = False,
    executable: Annotated[
        Path | None, typer.Option("--vllm", help="vLLM's executable, such as that of another environment.")
    ] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Show the command instead of running it.")] = False,
    debug: Debug = False,
) -> None:
    """Serve MODEL with vLLM and the flags that rollouts need. Prints what to put in the YAML once it answers."""
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
        sys.stdout.write(settings.shell_command() + "\n")
        return
    _serve_vllm(settings)


def _serve_embedded(settings: "EmbeddedSettings", *, port: int, api_key_env: str | None) -> None:
    from rollout.log import log_warnings_to_stderr
    from rollout.serving.embedded import EmbeddedServer
    from rollout.serving.server import serve_until_signal

    log_warnings_to_stderr()
    api_key = _read_key(api_key_env)

    def announce(url: str) -> None:
        sys.stdout.write(
            f"serving {settings.model_name} by the script {settings.policy} at {url}; no neural network is inside\n"
            f"in the YAML:  engine: {{urls: [{url}]{_key_setting(api_key_env)}}}\n"
        )
        sys.stdout.flush()

    serve_until_signal(EmbeddedServer(settings, port=port, api_key=api_key), announce)


def _serve_network(settings: "NetworkSettings", *, port: int, api_key_env: str | None) -> None:
    """Serve until SIGINT or SIGTERM, or raise ConfigurationError if torch or transformers is missing."""
    from rollout.images.processors import import_trainer_extra
    from rollout.log import log_warnings_to_stderr

    log_warnings_to_stderr()
    api_key = _read_key(api_key_env)
    for package in ("torch", "transformers"):
        import_trainer_extra(package)
    from rollout.serving.network.engine import NetworkEngine
    from rollout.serving.server import EngineServer, serve_until_signal

    engine = NetworkEngine(settings)

    def announce(url: str) -> None:
        sys.stdout.write(
            f"serving {engine.model_card.name} at {url}\n"
            "in the YAML:\n"
            f"  model: {{name: {engine.model_card.name}, path: {settings.model_dir.resolve()}}}\n"
            f"  engine: {{urls: [{url}]{_key_setting(api_key_env)}}}\n"
        )
        sys.stdout.flush()

    server = EngineServer(engine, weight_version=settings.weight_version, port=port, api_key=api_key)
    serve_until_signal(server, announce)


def _read_key(variable_name: str | None) -> str | None:
    from rollout.config.api_key import read_api_key

    return None if variable_name is None else read_api_key(variable_name, os.environ, named_by="--api-key-env")


def _key_setting(variable_name: str | None) -> str:
    return "" if variable_name is None else f", api_key_env: {variable_name}"


def _serve_vllm(settings: "VllmSettings") -> None:
    """Serve until SIGINT or SIGTERM, after which vLLM has some seconds to end; a second Ctrl-C ends it at once.

    The log stays if something went wrong.
    """
    from rollout.serving.vllm import VllmFailed, VllmServer

    log = _create_log(settings.port)
    server = VllmServer(settings, log)
    # SIGTERM interrupts any wait, as Ctrl-C does; vLLM is ended in `finally`.
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
        if not log.stat().st_size:  # it was never started
            log.unlink()
    if not is_stopped:
        raise VllmFailed(f"vLLM ended by itself; its log is {log}.")
    log.unlink(missing_ok=True)


def _create_log(port: int) -> Path:
    # Other users may write to the directory too; mkstemp makes a new file that nobody could prepare.
    descriptor, path = tempfile.mkstemp(prefix=f"rollout-vllm-{port}-", suffix=".log")
    os.close(descriptor)
    return Path(path)


def _announce_vllm(settings: "VllmSettings", log: Path) -> None:
    path = str(Path(settings.model).resolve()) if Path(settings.model).is_dir() else "DIRECTORY"
    sys.stdout.write(
        f"serving {settings.served_name} at {settings.url}; its log is {log}\n"
        "in the YAML:\n"
        f"  model: {{name: {settings.served_name}, path: {path}, renderer: RENDERER}}\n"
        f"  engine: {{urls: [{settings.url}]{_key_setting(settings.api_key_env)}}}\n"
        f"  run: {{directory: {settings.media_directory.resolve()}}}\n"
        "where RENDERER is the model's chat format, such as qwen3-vl"
        f"{', and DIRECTORY holds its tokenizer and processor files' if path == 'DIRECTORY' else ''}\n"
    )
    sys.stdout.flush()


class StartupStatus:
    """The seconds so far and vLLM's last line: one line that changes on a terminal, new lines elsewhere."""

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
        text = f"starting vLLM, {seconds:.0f} s: {line.rpartition('] ')[2][:100]}"
        if can_redraw(self._console):
            self._status.update(escape(text))
        elif seconds - self._last_shown >= _LINE_INTERVAL_SECONDS:
            self._last_shown = seconds
            self._console.print(text, highlight=False, markup=False)
