"""The checks of the server: its model, its weights, its generate endpoint, and the images that it reads."""

from rollout.config.model_directory import BUILTIN_MODELS, written_model_path
from rollout.doctor.engines.under_test import EngineUnderTest, NothingToCheck
from rollout.engine.adapters import fetch_adapter_support
from rollout.engine.errors import EngineMismatch, EngineRefused, EngineUnavailable, ModelNotServed
from rollout.engine.weight_updates import NotUpdatable, fetch_engine_state

_ADAPTERS = {
    True: "LoRA adapters can be loaded",
    False: "LoRA adapters cannot be loaded",
    None: "whether LoRA adapters can be loaded is unknown",
}


async def check_model(engine: EngineUnderTest) -> str:
    """Check that the engine answers and serves the model; return the finding."""
    await engine.client.check()
    return f"serves {engine.client.model}; its context holds {engine.client.max_model_len} tokens"


async def check_weights(engine: EngineUnderTest) -> str:
    """Check that a trainer can update the weights; return the finding, and whether adapters can be loaded.

    Without `policy.max_staleness`, no update is needed, so an engine without updates passes, too.
    """
    adapters = await fetch_adapter_support(engine.transport, engine.url)
    about_adapters = f"{_ADAPTERS[adapters.can_load]}: {adapters.reason.rstrip('.')}"
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
        raise EngineUnavailable("the engine is paused for new weights that never came, so it answers no request.")
    return f"version {state.version}; the weights can be replaced. {about_adapters}"


async def check_endpoint(engine: EngineUnderTest) -> str:
    """Check that the engine takes and gives tokens, with log-probs; return the finding."""
    generation = await engine.client.generate(engine.text_request)
    version = ", ".join(span.version for span in generation.versions) or "not reported"
    return f"answers token-in, token-out with log-probs; weight version {version}"


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
    if isinstance(error, ModelNotServed) and error.served:
        return f"set model.name to {' or '.join(error.served)}"
    if isinstance(error, EngineRefused):
        return None
    if written_model_path(engine.config.model.path) in BUILTIN_MODELS:
        return f"start it: rollout serve embedded --name {engine.config.model.name}"
    return f"start it: rollout serve vllm {engine.config.model.path} --name {engine.config.model.name}"


def weights_fix(engine: EngineUnderTest, error: Exception) -> str | None:
    """Return what corrects an error of `check_weights`."""
    return "rollout policy push CONFIG --run RUN_DIR" if isinstance(error, EngineUnavailable) else None


def endpoint_fix(engine: EngineUnderTest, error: Exception) -> str:
    """Return what corrects an error of `check_endpoint`."""
    return "start vLLM 0.28 or newer with --enable-scale-out, or with rollout serve vllm, which sets it"


def images_fix(engine: EngineUnderTest, error: Exception) -> str:
    """Return what corrects an error of `check_images`."""
    if isinstance(error, EngineMismatch):
        return "use the processor configuration of the engine's checkpoint in model.path"
    runs_directory = engine.config.run.directory
    return (
        f"the server must read files below {runs_directory}: use the same path on both machines, and give the server "
        f"--allowed-local-media-path {runs_directory} (rollout serve vllm --media)"
    )
