"""`rollout serve …`: the arguments and options of each engine."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rollout.cli.parameters import Debug
from rollout.serving.network.settings import Dtype, NetworkSettings

serve = typer.Typer(help="Start an engine that rollouts can be played against.", no_args_is_help=True)


@serve.command()
def embedded(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="[MODEL]", help="Directory with tokenizer and processor config; else the one we ship."),
    ] = None,
    name: Annotated[str, typer.Option(help="The name under which the model is served.")] = "tiny-qwen3-vl",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    allow: Annotated[list[Path] | None, typer.Option(help="Directory that file:// images may come from.")] = None,
    policy: Annotated[
        str, typer.Option(help="The script that answers, as package.module:Class.")
    ] = "rollout.serving.policies:ColorPolicy",
    max_model_len: Annotated[
        int, typer.Option(min=16, help="Longest prompt and completion together, in tokens.")
    ] = 32768,
    latency_ms: Annotated[float, typer.Option(min=0, help="Added to every answer, to look like a slow engine.")] = 0.0,
    debug: Debug = False,
) -> None:
    """Serve a *scripted* policy over HTTP, for demos and tests. No neural network is inside.

    It speaks vLLM's POST /inference/v1/generate strictly: what vLLM would answer with garbage, it answers with 400. The
    script sees the pixels of the images in one request, and nothing else; with temperature > 0 it errs at a known rate.
    """
    from rollout.cli.serve import serve_embedded
    from rollout.serving.embedded import TINY_MODEL, EmbeddedSettings

    settings = EmbeddedSettings(
        model_dir=model or TINY_MODEL,
        model_name=name,
        policy=policy,
        max_model_len=max_model_len,
        allowed_directories=tuple(allow or ()),
        latency_ms=latency_ms,
    )
    serve_embedded(settings, port=port)


@serve.command("transformers")
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
    debug: Debug = False,
) -> None:
    """Serve MODEL, a Qwen3-VL or Qwen2.5-VL, by torch and transformers alone: for laptops, tests and small runs.

    It speaks vLLM's POST /inference/v1/generate strictly, batches requests, and takes new weights like vLLM with
    VLLM_SERVER_DEV_MODE=1: POST /pause, /collective_rpc, /update_weight_version, /resume. Needs the extra `trainer`.
    """
    from rollout.cli.serve import serve_network

    settings = NetworkSettings(
        model_dir=model,
        model_name=name,
        max_model_len=max_model_len,
        weight_version=weight_version,
        allowed_directories=tuple(allow or ()),
        device=device,
        dtype=dtype,
    )
    serve_network(settings, port=port)


@serve.command()
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
    updates: Annotated[bool, typer.Option(help="Let trainers, and whoever reaches it, replace its weights.")] = True,
    executable: Annotated[
        Path | None, typer.Option("--vllm", help="vLLM's executable, such as that of another environment.")
    ] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Show the command instead of running it.")] = False,
    debug: Debug = False,
) -> None:
    """Serve MODEL with vLLM and the flags that rollouts need. Prints what to put in the YAML once it answers."""
    from rollout.cli.serve import serve_vllm
    from rollout.serving.vllm import VllmSettings

    settings = VllmSettings(
        model=model,
        media_directory=media,
        name=name,
        host=host,
        port=port,
        updates=updates,
        executable=executable,
        flags=tuple(flags or ()),
    )
    if only_print:
        sys.stdout.write(settings.shell_command() + "\n")
        return
    raise typer.Exit(serve_vllm(settings))
