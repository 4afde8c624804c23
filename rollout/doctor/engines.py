"""What only a running engine can tell: whether it serves this model, reads our images, and sees the prompt we mean.

Every engine is examined on its own, in the order in which faults hide one another: reached, model, tokens, endpoint,
images, pixels. After the first fault the rest of an engine says nothing, and is not asked.
"""

import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import orjson
from PIL import Image

from renderers_adapter.adapter import RendererAdapter, load_processor_config
from renderers_adapter.errors import AdapterError
from renderers_adapter.rendered import Segment
from renderers_adapter.tokens import ImageSlot, TokenRun, expand, join
from rollout.config.load import Config
from rollout.doctor.pixels import compare
from rollout.engine.client import EngineClient
from rollout.engine.errors import EngineMismatch, EngineNotFound, EngineRefused, EngineUnavailable
from rollout.engine.from_config import api_key, engine_client
from rollout.engine.http import EngineHttp
from rollout.engine.request import GenerateRequest
from rollout.engine.weight_updates import NotUpdatable, state_of
from rollout.errors import RolloutError
from rollout.images import ImagePolicy, PreparedImage, prepare_images
from rollout.records.messages import Message
from rollout.rundir.directory import RunDirectory
from rollout.session.image_table import ImageTable

_SIZES = ((96, 64), (320, 240), (1000, 700))
"""Width and height of the probes: images below, within and above what a processor leaves as it is."""
_QUESTION = 'Which is the largest of these pictures? Say 1, 2 or 3: naïve café, 日本語, {"x": [1, 2]}.'


class Verdict(Enum):
    """UNKNOWN is what nobody could look at: neither proven nor refuted."""

    OK = "ok"
    BAD = "bad"
    UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table. A `cure` is there where what was `told` does not say itself what to do."""

    subject: str
    told: str
    verdict: Verdict = Verdict.OK
    cure: str | None = None


class _NotCompared(Exception):
    """One side cannot be looked at, for the reason that it tells."""


@dataclass(frozen=True, slots=True)
class _Patient:
    """An engine under examination, and what it is to be asked."""

    url: str
    config: Config
    adapter: RendererAdapter
    http: EngineHttp
    client: EngineClient
    plain: GenerateRequest
    pictures: GenerateRequest


async def examine(config: Config) -> AsyncIterator[Finding]:
    """Examine every configured engine.

    Raises:
        RolloutError, AdapterError: the configuration itself does not work, as doctor says without `--live`.
    """
    if not config.engine.urls:
        yield Finding("engine", "embedded, started with every run; nothing to reach")
        return
    adapter = RendererAdapter.open(config.model.path, config.model.renderer, config.model.template)
    with _probe_directory(config.run.directory) as directory:
        images = ImagePolicy(config.images.mode, directory.images)
        plain = _request(adapter, images, ())
        pictures = _request(adapter, images, _SIZES if adapter.geometry else ())
        key = api_key(config)
        for url in config.engine.urls:
            async with EngineHttp(key) as http, engine_client(config, [url], adapter.geometry) as client:
                patient = _Patient(url, config, adapter, http, client, plain, pictures)
                async for finding in _examine(patient):
                    yield finding


async def _examine(patient: _Patient) -> AsyncIterator[Finding]:
    for subject, look, cure in _LOOKS:
        try:
            told = await look(patient)
        except _NotCompared as why:
            yield Finding(f"{patient.url} {subject}", f"not compared: {why}", Verdict.UNKNOWN)
        except (RolloutError, AdapterError) as error:
            yield Finding(f"{patient.url} {subject}", str(error), Verdict.BAD, cure(patient, error))
            return
        else:
            yield Finding(f"{patient.url} {subject}", told)


async def _model(patient: _Patient) -> str:
    await patient.client.check()
    return f"serves {patient.client.model}; its context holds {patient.client.max_model_len} tokens"


async def _weights(patient: _Patient) -> str:
    """Whether a trainer can bring it new weights; where nobody paces rollouts by versions, none need come."""
    try:
        state = await state_of(patient.http, patient.url)
    except NotUpdatable as error:
        if patient.config.policy.max_staleness is not None:
            raise
        return f"as it was started: {error}"
    if state.paused:
        raise EngineUnavailable("it is paused, as for new weights that never came; nobody gets an answer.")
    return f"version {state.version}, and can be replaced"


async def _tokens(patient: _Patient) -> str:
    """The server's tokenizer makes of a prompt's text what ours makes of it, special and pad tokens included."""
    tokenizer = patient.adapter.tokenizer
    text = tokenizer.decode(patient.pictures.prompt.tolist())
    ours = tokenizer.encode(text)
    body = {"model": patient.client.model, "prompt": text, "add_special_tokens": False}
    try:
        theirs = orjson.loads(await patient.http.post(f"{patient.url}/tokenize", orjson.dumps(body)))["tokens"]
    except EngineNotFound:
        raise _NotCompared("this server does not tokenize") from None
    except (ValueError, KeyError, TypeError) as error:
        raise EngineMismatch(f"{patient.url}/tokenize answers in a form that is not known ({error!r}).") from None
    if theirs != ours:
        pairs = enumerate(zip(ours, theirs, strict=False))
        at = next((at for at, (mine, its) in pairs if mine != its), min(len(ours), len(theirs)))
        raise EngineMismatch(
            f"the server's tokenizer is another one: token {at} is {theirs[at : at + 1]} there and {ours[at : at + 1]} "
            f"({tokenizer.decode(ours[at : at + 1])!r}) here."
        )
    return f"the same tokenizer: {len(ours)} tokens of a prompt with special and pad tokens agree"


async def _endpoint(patient: _Patient) -> str:
    generation = await patient.client.generate(patient.plain)
    version = ", ".join(span.version for span in generation.versions) or "not told"
    return f"answers token-in, token-out with log-probs; weight version {version}"


async def _images(patient: _Patient) -> str:
    request = patient.pictures
    if not request.images:
        return "this model takes none"
    await patient.client.generate(request)
    lengths = ", ".join(str(mark.length) for mark in request.placeholders)
    how = "file://" if request.images[0].url.startswith("file:") else "data:"
    form = "references" if patient.client.engines[0].resolves_references else "content_parts"
    return f"{how} images are read by the server from {form}, and expand to {lengths} tokens as we computed"


async def _pixels(patient: _Patient) -> str:
    geometry = patient.adapter.geometry
    if geometry is None:
        return "this model takes none"
    config = load_processor_config(patient.config.model.path)
    model = patient.client.model
    try:
        parity = await compare(patient.http, patient.url, model=model, config=config, family=geometry.family)
    except EngineNotFound:
        raise _NotCompared("this server does not render") from None
    if not parity.differences:
        raise _NotCompared("transformers is not installed here; install rollout[trainer], or ask where the trainer is")
    if parity.proven is None:
        raise EngineMismatch(parity.told())
    return parity.told()


def _model_cure(patient: _Patient, error: Exception) -> str | None:
    if isinstance(error, EngineRefused):
        return None
    return f"start it: rollout serve vllm {patient.config.model.path} --name {patient.config.model.name}"


def _weights_cure(patient: _Patient, error: Exception) -> str | None:
    return "rollout policy push CONFIG --run RUN_DIR" if isinstance(error, EngineUnavailable) else None


def _tokens_cure(patient: _Patient, error: Exception) -> str:
    return "let model.path be the directory of the checkpoint that the engine serves"


def _endpoint_cure(patient: _Patient, error: Exception) -> str:
    return "start vLLM 0.28 or newer with --enable-scale-out, or with rollout serve vllm, which does"


def _images_cure(patient: _Patient, error: Exception) -> str:
    if isinstance(error, EngineMismatch):
        return "let the processor configuration in model.path be that of the engine's checkpoint"
    runs = patient.config.run.directory
    return (
        f"the server must read below {runs}: the same path there as here, and --allowed-local-media-path {runs} "
        "(rollout serve vllm --media)"
    )


def _pixels_cure(patient: _Patient, error: Exception) -> str:
    return (
        "what the trainer would see is not what the engine sees: let both have the same versions of transformers and "
        "torchvision, or compare where the trainer's are installed"
    )


_Look = Callable[[_Patient], Awaitable[str]]
_Cure = Callable[[_Patient, Exception], str | None]
_LOOKS: tuple[tuple[str, _Look, _Cure], ...] = (
    ("model", _model, _model_cure),
    ("weights", _weights, _weights_cure),
    ("tokens", _tokens, _tokens_cure),
    ("endpoint", _endpoint, _endpoint_cure),
    ("images", _images, _images_cure),
    ("pixels", _pixels, _pixels_cure),
)


@contextmanager
def _probe_directory(runs: Path) -> Iterator[RunDirectory]:
    """A run of its own: the server has to read where the runs will lie, and no run may find our probes."""
    directory = RunDirectory(runs / f"doctor-{secrets.token_hex(4)}")
    directory.make()
    try:
        yield directory
    finally:
        shutil.rmtree(directory.path, ignore_errors=True)


def _request(adapter: RendererAdapter, policy: ImagePolicy, sizes: Sequence[tuple[int, int]]) -> GenerateRequest:
    """A prompt that shows new pictures of these sizes."""
    pictures = [{"type": "image", "image": _picture(size)} for size in sizes]
    system: Message = {"role": "system", "content": "You compare pictures."}
    question = {"type": "text", "text": _QUESTION}
    asked: Message = {"role": "user", "content": [*pictures, question]}
    table = ImageTable(adapter.geometry)
    images = prepare_images([asked], policy).images
    table.learn(images, first=0)
    rendered = adapter.render(
        [system, {"role": "user", "content": [*[{"type": "image"}] * len(sizes), question]}], None
    )
    runs = [
        TokenRun(segment.ids, len(segment.ids), images=_slots(segment, images, table)) for segment in rendered.segments
    ]
    whole = expand([*runs, TokenRun(rendered.opening, len(rendered.opening))], pad_id=adapter.pad_id)
    name = f"doctor-{secrets.token_hex(4)}"
    return GenerateRequest(
        request_id=name,
        session=name,
        prompt=join(*(run.ids for run in runs), rendered.opening),
        images=table.references(whole.placeholders),
        expanded=whole.ids,
        known=0,
        placeholders=whole.placeholders,
        pad_id=adapter.pad_id,
        sampling={"temperature": 0.0, "max_tokens": 1},
        stop_token_ids=adapter.stop_token_ids,
    )


def _slots(segment: Segment, images: Sequence[PreparedImage], table: ImageTable) -> tuple[ImageSlot, ...]:
    """Where the pictures lie in a message: in the question all of them, elsewhere none."""
    hashes = [image.mm_hash for image in images] if segment.image_offsets else []
    return tuple(
        ImageSlot(mm_hash, offset, table.tokens(mm_hash))
        for mm_hash, offset in zip(hashes, segment.image_offsets, strict=True)
    )


def _picture(size: tuple[int, int]) -> Image.Image:
    """Noise, so that no two probes are the same to any cache."""
    pixels = np.random.default_rng(secrets.randbits(64)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)
