"""The checks of the server: its model, its weights, its generate endpoint, and the images that it reads."""

from urllib.parse import urlsplit

import anyio

from rollout.config.model_directory import BUILTIN_MODELS, written_model_path
from rollout.doctor.engines.under_test import EngineUnderTest, NothingToCheck
from rollout.engine.adapters import fetch_adapter_support
from rollout.engine.errors import EngineMismatch, EnginePaused, EngineRefused, KeyRefused, ModelNotServed
from rollout.engine.seeds import find_seed_problem
from rollout.engine.weight_updates import NotUpdatable, fetch_engine_state

_ADAPTERS = {
    True: "LoRA adapters can be loaded",
    False: "LoRA adapters cannot be loaded",
    None: "whether LoRA adapters can be loaded is unknown",
}
_ADAPTERS_TIMEOUT = 30.0


async def check_model(engine: EngineUnderTest) -> str:
    """Check that the engine answers and serves the model; return the finding."""
    await engine.client.check()
    length = engine.client.max_model_len
    context = "it does not report the length of its context" if length is None else f"its context holds {length} tokens"
    return f"serves {engine.client.model}; {context}"


async def check_weights(engine: EngineUnderTest) -> str:
    """Check that a trainer can update the weights; return the finding, and whether adapters can be loaded.

    Without `policy.max_staleness`, no update is needed, so an engine without updates passes, too.
    """
    about_adapters = await _find_adapter_support(engine)
    try:
        state = await fetch_engine_state(engine.transport, engine.url)
    except NotUpdatable as error:
        if engine.config.policy.max_staleness is not None:
            raise
        reason = str(error).rstrip(".")
        return (
            f"no update is needed (policy.max_staleness is not set), and none is possible: {reason}. {about_adapters}"
        )
    if state.paused:
        raise EnginePaused("the engine is paused for new weights, so it answers no request.")
    return f"version {state.version}; the weights can be replaced. {about_adapters}"


async def _find_adapter_support(engine: EngineUnderTest) -> str:
    with anyio.move_on_after(_ADAPTERS_TIMEOUT):
        adapters = await fetch_adapter_support(engine.transport, engine.url)
        return f"{_ADAPTERS[adapters.can_load]}: {adapters.reason.rstrip('.')}"
    return f"{_ADAPTERS[None]}: the engine did not say it within {_ADAPTERS_TIMEOUT:g} s"


async def check_endpoint(engine: EngineUnderTest) -> str:
    """Check that the engine takes and gives tokens, with log-probs; return the finding."""
    generation = await engine.client.generate(engine.text_request)
    version = ", ".join(span.version for span in generation.versions) or "not reported"
    finding = f"answers token-in, token-out with log-probs; weight version {version}"
    if engine.config.engine.sampling.seed is None:
        return finding
    problem = await find_seed_problem(engine.transport, engine.url)
    return finding if problem is None else f"{finding}. Its requests are sent without engine.sampling.seed: {problem}"


async def check_images(engine: EngineUnderTest) -> str:
    """Check that the engine reads our images and expands them as we do; return the finding."""
    request = engine.image_request
    if not request.images:
        raise NothingToCheck("this model takes no images")
    await engine.client.generate(request)
    lengths = ", ".join(str(placeholder.length) for placeholder in request.placeholders)
    url_scheme = "file://" if request.images[0].url.startswith("file:") else "data:"
    form = "references" if engine.client.replicas[0].resolves_references else "content_parts"
    return f"the server reads {url_scheme} images from {form}; they take {lengths} tokens, as we computed"


def model_fix(engine: EngineUnderTest, error: Exception) -> str | None:
    """Return what corrects an error of `check_model`."""
    key_variable = engine.config.engine.api_key_env
    if isinstance(error, ModelNotServed) and error.served:
        return f"set model.name to {' or '.join(error.served)}"
    if isinstance(error, KeyRefused):
        if key_variable is None:
            return "set engine.api_key_env to the name of an environment variable, and put the engine's key into it"
        return f"put the engine's key into the environment variable {key_variable}, because it refuses the one there"
    if isinstance(error, EngineRefused):
        return None
    port = urlsplit(engine.url).port
    options = f"--name {engine.config.model.name}" + ("" if port is None else f" --port {port}")
    if written_model_path(engine.config.model.path) in BUILTIN_MODELS:
        return f"start it: rollout serve embedded {options}"
    return f"start it: rollout serve vllm {engine.config.model.path} {options} --media {engine.config.run.directory}"


def endpoint_fix(engine: EngineUnderTest, error: Exception) -> str:
    """Return what corrects an error of `check_endpoint`."""
    return "start vLLM 0.28 or newer with --enable-scale-out, or with rollout serve vllm, which sets it"


def images_fix(engine: EngineUnderTest, error: Exception) -> str:
    """Return what corrects an error of `check_images`."""
    if isinstance(error, EngineMismatch):
        return (
            "set model.path to the directory of the checkpoint that the engine serves, with the same "
            "preprocessor_config.json (or processor_config.json)"
        )
    runs_directory = engine.config.run.directory
    return (
        f"the server must read files below {runs_directory}: give it --allowed-local-media-path {runs_directory} "
        "(rollout serve vllm --media), or set run.directory to a directory that it may read. On another machine, it "
        "must have the same path. Without a shared directory, set images.mode to inline"
    )
