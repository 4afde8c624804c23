"""The checks of running engines: whether each serves this model, reads our images, and sees the prompt that we send.

Each engine is checked in this order: model, weights, tokens, endpoint, images, pixels. If a check fails, the later
checks are left out, because they would fail, too.
"""

import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from PIL import Image

from renderers_adapter.adapter import RendererAdapter, load_processor_config
from renderers_adapter.errors import AdapterError
from renderers_adapter.rendered import MessageSegment
from renderers_adapter.tokens import ImageSlot, TokenRun, concat_ids, expand
from rollout.config.load import Config
from rollout.config.model_directory import BUILTIN_MODELS, written_model_path
from rollout.doctor.pixels import compare_pixels
from rollout.doctor.results import CheckResult, CheckStatus
from rollout.engine.client import EngineClient
from rollout.engine.errors import EngineBroken, EngineMismatch, EngineNotFound, EngineRefused, EngineUnavailable
from rollout.engine.from_config import api_key_from_config, engine_client_from_config
from rollout.engine.httpx_transport import HttpxTransport
from rollout.engine.request import GenerateRequest
from rollout.engine.transport import EngineTransport
from rollout.engine.weight_updates import NotUpdatable, fetch_engine_state
from rollout.errors import RolloutError
from rollout.images import ImagePolicy, PreparedImage, prepare_images
from rollout.records.messages import Message
from rollout.rundir.directory import RunDirectory
from rollout.session.image_table import ImageTable

_PROBE_SIZES = ((96, 64), (320, 240), (1000, 700))
"""Width and height of each probe image. A processor enlarges the first image, keeps the second, shrinks the third."""
_PROBE_QUESTION = 'Which is the largest of these pictures? Say 1, 2 or 3: naïve café, 日本語, {"x": [1, 2]}.'

_BROKEN_FIX = "read the engine's log, because the engine failed while it handled the request"


class _CheckSkipped(Exception):
    """A check cannot be made; the message of this error says why."""


@dataclass(frozen=True, slots=True)
class _EngineUnderTest:
    """An engine that is checked, and what its checks use: the configuration, a client, and probe requests."""

    url: str
    config: Config
    adapter: RendererAdapter
    transport: EngineTransport
    client: EngineClient
    text_request: GenerateRequest
    image_request: GenerateRequest


async def check_engines(config: Config) -> AsyncIterator[CheckResult]:
    """Check every configured engine, and yield the result of each check.

    Raises:
        RolloutError, AdapterError: the configuration is wrong; the checks without `--live` report this.
    """
    if not config.engine.urls:
        yield CheckResult("engine", "embedded: it starts with the run, so there is no engine to check")
        return
    adapter = RendererAdapter.open(config.model.path, config.model.renderer, config.model.template)
    with _probe_directory(config.run.directory) as directory:
        image_policy = ImagePolicy(config.images.mode, directory.images_path)
        text_request = _probe_request(adapter, image_policy, ())
        image_request = _probe_request(adapter, image_policy, _PROBE_SIZES if adapter.geometry else ())
        engine_api_key = api_key_from_config(config)
        for url in config.engine.urls:
            async with (
                HttpxTransport(engine_api_key) as transport,
                engine_client_from_config(config, [url], adapter.geometry) as client,
            ):
                engine = _EngineUnderTest(url, config, adapter, transport, client, text_request, image_request)
                async for result in _check_engine(engine):
                    yield result


async def _check_engine(engine: _EngineUnderTest) -> AsyncIterator[CheckResult]:
    for subject, run_check, fix_for in _ENGINE_CHECKS:
        try:
            message = await run_check(engine)
        except _CheckSkipped as reason:
            yield CheckResult(f"{engine.url} {subject}", f"not compared: {reason}", CheckStatus.UNKNOWN)
        except (RolloutError, AdapterError) as error:
            fix = _BROKEN_FIX if isinstance(error, EngineBroken) else fix_for(engine, error)
            yield CheckResult(f"{engine.url} {subject}", str(error), CheckStatus.BAD, fix)
            return
        else:
            yield CheckResult(f"{engine.url} {subject}", message)


async def _check_model(engine: _EngineUnderTest) -> str:
    await engine.client.check()
    return f"serves {engine.client.model}; its context holds {engine.client.max_model_len} tokens"


async def _check_weights(engine: _EngineUnderTest) -> str:
    """Check that a trainer can update the weights, and return the finding.

    Without `policy.max_staleness`, no update is needed, so an engine without updates passes, too.
    """
    try:
        state = await fetch_engine_state(engine.transport, engine.url)
    except NotUpdatable as error:
        if engine.config.policy.max_staleness is not None:
            raise
        return f"no update is needed (policy.max_staleness is not set), and none is possible: {error}"
    if state.paused:
        raise EngineUnavailable("the engine is paused for new weights that never came, so it answers no request.")
    return f"version {state.version}; the weights can be replaced"


async def _check_tokens(engine: _EngineUnderTest) -> str:
    """Check that both tokenizers give the same ids for a prompt with special and pad tokens; return the finding."""
    tokenizer = engine.adapter.tokenizer
    text = tokenizer.decode(engine.image_request.prompt.tolist())
    own_ids = tokenizer.encode(text)
    body = {"model": engine.client.model, "prompt": text, "add_special_tokens": False}
    try:
        server_ids = orjson.loads(await engine.transport.post(f"{engine.url}/tokenize", orjson.dumps(body)))["tokens"]
    except EngineNotFound:
        raise _CheckSkipped("this server has no tokenizer route") from None
    except (ValueError, KeyError, TypeError) as error:
        raise EngineMismatch(f"{engine.url}/tokenize answers in an unknown form ({error!r}).") from None
    if server_ids != own_ids:
        id_pairs = enumerate(zip(own_ids, server_ids, strict=False))
        position = next(
            (at for at, (own_id, server_id) in id_pairs if own_id != server_id), min(len(own_ids), len(server_ids))
        )
        raise EngineMismatch(
            f"the server has a different tokenizer: its token {position} is {server_ids[position : position + 1]}, "
            f"ours is {own_ids[position : position + 1]} ({tokenizer.decode(own_ids[position : position + 1])!r})."
        )
    return f"the same tokenizer: {len(own_ids)} tokens are equal, including special and pad tokens"


async def _check_endpoint(engine: _EngineUnderTest) -> str:
    generation = await engine.client.generate(engine.text_request)
    version = ", ".join(span.version for span in generation.versions) or "not reported"
    return f"answers token-in, token-out with log-probs; weight version {version}"


async def _check_images(engine: _EngineUnderTest) -> str:
    request = engine.image_request
    if not request.images:
        return "this model takes none"
    await engine.client.generate(request)
    lengths = ", ".join(str(placeholder.length) for placeholder in request.placeholders)
    url_scheme = "file://" if request.images[0].url.startswith("file:") else "data:"
    form = "references" if engine.client.replicas[0].resolves_references else "content_parts"
    return f"the server reads {url_scheme} images from {form}; they take {lengths} tokens, as we computed"


async def _check_pixels(engine: _EngineUnderTest) -> str:
    geometry = engine.adapter.geometry
    if geometry is None:
        return "this model takes none"
    processor_config = load_processor_config(engine.config.model.path)
    model = engine.client.model
    try:
        comparison = await compare_pixels(
            engine.transport, engine.url, model=model, config=processor_config, family=geometry.family
        )
    except EngineNotFound:
        raise _CheckSkipped("this server has no render route") from None
    if not comparison.differences:
        raise _CheckSkipped(
            "transformers is not installed here; install rollout-rl[trainer], or run the check on the trainer's machine"
        )
    if comparison.matching_backend is None:
        raise EngineMismatch(comparison.summary())
    return comparison.summary()


def _model_fix(engine: _EngineUnderTest, error: Exception) -> str | None:
    if isinstance(error, EngineRefused):
        return None
    if written_model_path(engine.config.model.path) in BUILTIN_MODELS:
        return f"start it: rollout serve embedded --name {engine.config.model.name}"
    return f"start it: rollout serve vllm {engine.config.model.path} --name {engine.config.model.name}"


def _weights_fix(engine: _EngineUnderTest, error: Exception) -> str | None:
    return "rollout policy push CONFIG --run RUN_DIR" if isinstance(error, EngineUnavailable) else None


def _tokens_fix(engine: _EngineUnderTest, error: Exception) -> str:
    return "set model.path to the directory of the checkpoint that the engine serves"


def _endpoint_fix(engine: _EngineUnderTest, error: Exception) -> str:
    return "start vLLM 0.28 or newer with --enable-scale-out, or with rollout serve vllm, which sets it"


def _images_fix(engine: _EngineUnderTest, error: Exception) -> str:
    if isinstance(error, EngineMismatch):
        return "use the processor configuration of the engine's checkpoint in model.path"
    runs_directory = engine.config.run.directory
    return (
        f"the server must read files below {runs_directory}: use the same path on both machines, and give the server "
        f"--allowed-local-media-path {runs_directory} (rollout serve vllm --media)"
    )


def _pixels_fix(engine: _EngineUnderTest, error: Exception) -> str:
    return (
        "install the same versions of transformers and torchvision for the trainer and the engine, because otherwise "
        "they see different pixels; or run the check on the trainer's machine"
    )


_EngineCheck = Callable[[_EngineUnderTest], Awaitable[str]]
_FixFinder = Callable[[_EngineUnderTest, Exception], str | None]
_ENGINE_CHECKS: tuple[tuple[str, _EngineCheck, _FixFinder], ...] = (
    ("model", _check_model, _model_fix),
    ("weights", _check_weights, _weights_fix),
    ("tokens", _check_tokens, _tokens_fix),
    ("endpoint", _check_endpoint, _endpoint_fix),
    ("images", _check_images, _images_fix),
    ("pixels", _check_pixels, _pixels_fix),
)


@contextmanager
def _probe_directory(runs_directory: Path) -> Iterator[RunDirectory]:
    """Yield a new run directory for the probe images, and delete it afterwards.

    The directory is in the directory of the runs, because the server must be able to read it.
    """
    directory = RunDirectory(runs_directory / f"doctor-{secrets.token_hex(4)}")
    directory.create()
    try:
        yield directory
    finally:
        shutil.rmtree(directory.path, ignore_errors=True)


def _probe_request(
    adapter: RendererAdapter, image_policy: ImagePolicy, sizes: Sequence[tuple[int, int]]
) -> GenerateRequest:
    """Return a request with new images of these sizes in its prompt."""
    pictures = [{"type": "image", "image": _noise_picture(size)} for size in sizes]
    system: Message = {"role": "system", "content": "You compare pictures."}
    question = {"type": "text", "text": _PROBE_QUESTION}
    user_message: Message = {"role": "user", "content": [*pictures, question]}
    image_table = ImageTable(adapter.geometry)
    images = prepare_images([user_message], image_policy).images
    image_table.add(images, first_index=0)
    rendered = adapter.render(
        [system, {"role": "user", "content": [*[{"type": "image"}] * len(sizes), question]}], None
    )
    runs = [
        TokenRun(segment.ids, len(segment.ids), images=_image_slots(segment, images, image_table))
        for segment in rendered.segments
    ]
    expanded = expand(
        [*runs, TokenRun(rendered.generation_prompt, len(rendered.generation_prompt))], pad_id=adapter.pad_id
    )
    request_id = f"doctor-{secrets.token_hex(4)}"
    return GenerateRequest(
        request_id=request_id,
        session_id=request_id,
        prompt=concat_ids(*(run.ids for run in runs), rendered.generation_prompt),
        images=image_table.references(expanded.placeholders),
        expanded_prompt=expanded.ids,
        known_token_count=0,
        placeholders=expanded.placeholders,
        pad_id=adapter.pad_id,
        sampling={"temperature": 0.0, "max_tokens": 1},
        stop_token_ids=adapter.stop_token_ids,
    )


def _image_slots(
    segment: MessageSegment, images: Sequence[PreparedImage], image_table: ImageTable
) -> tuple[ImageSlot, ...]:
    """Return the image slots of a message. The question contains all images, the other messages contain none."""
    hashes = [image.asset.mm_hash for image in images] if segment.image_offsets else []
    return tuple(
        ImageSlot(mm_hash, offset, image_table.token_count(mm_hash))
        for mm_hash, offset in zip(hashes, segment.image_offsets, strict=True)
    )


def _noise_picture(size: tuple[int, int]) -> Image.Image:
    """Return a new image of random noise, so that no cache contains it."""
    pixels = np.random.default_rng(secrets.randbits(64)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)
