"""Checks one engine before it is used: its model, its weights, and whether it resolves references of images."""

import anyio
import orjson
import structlog

from renderers_adapter.geometry import Geometry
from rollout.config.sections import MultimodalMode
from rollout.engine.errors import EngineBehind, EngineRefused, EngineTimeout, ModelNotServed
from rollout.engine.features import find_layout_problem
from rollout.engine.routing import Replica, Router
from rollout.engine.transport import EngineTransport
from rollout.engine.weight_updates import fetch_engine_state

log = structlog.get_logger()


class ReplicaChecker:
    """Checks the engines of one client.

    Args:
        transport: sends the requests.
        router: knows which version of the weights is required.
        model: the name of the model.
        multimodal: how images are sent; with `mmraw`, an engine must resolve references.
        geometry: the geometry of the references; None: no references are sent.
    """

    def __init__(
        self,
        transport: EngineTransport,
        router: Router,
        model: str,
        multimodal: MultimodalMode,
        geometry: Geometry | None,
    ) -> None:
        self._transport = transport
        self._router = router
        self._model = model
        self._multimodal = multimodal
        self._geometry = geometry

    async def check(self, replica: Replica, timeout: float) -> None:
        """Check that an engine serves the model and has the required weights; store its properties in `replica`.

        Raises:
            EngineError: the engine does not answer in time, or cannot be used.
        """
        with anyio.move_on_after(timeout):
            models_json = await self._transport.get(f"{replica.url}/v1/models")
            replica.max_model_len = _parse_max_model_len(replica.url, models_json, self._model)
            if self._router.required_version is not None:
                version = (await fetch_engine_state(self._transport, replica.url)).version
                if not self._router.has_required_version(version):
                    raise EngineBehind(
                        f"{replica.url} has the weights {version!r}, but the trainer has pushed "
                        f"{self._router.required_version!r}."
                    )
                replica.version = version
            if self._geometry is not None:
                replica.resolves_references = await self._supports_references(replica.url, self._geometry)
            return
        raise EngineTimeout(f"{replica.url} did not answer the requests of a check within {timeout:g} s.")

    async def _supports_references(self, url: str, geometry: Geometry) -> bool:
        try:
            problem = find_layout_problem(await self._transport.get(f"{url}/mmraw/version"), geometry)
        except EngineRefused:
            problem = "it runs without our plugin"
        if problem is None:
            log.info("images are sent as references", engine=url, fingerprint=geometry.fingerprint)
        elif self._multimodal == "mmraw":
            raise EngineRefused(
                f"engine.multimodal is mmraw, but {url} does not resolve references: {problem}. Start the engine with "
                "our plugin (VLLM_PLUGINS=mmraw), or set engine.multimodal: auto."
            )
        else:
            log.info("images are sent as content_parts", engine=url, because=problem)
        return problem is None


def _parse_max_model_len(url: str, models_json: bytes, model: str) -> int | None:
    """Return the context length of a model. That of an adapter is its parent's, because vLLM reports none for it."""
    try:
        models = {entry["id"]: entry for entry in orjson.loads(models_json)["data"]}
        if model not in models:
            served = tuple(sorted(models))
            raise ModelNotServed(
                f"{url} does not serve the model {model!r}; it serves {', '.join(served) or 'none'}. "
                "Set model.name to one of these.",
                served,
            )
        name = model
        while (entry := models.pop(name, None)) is not None:
            if (context_length := entry.get("max_model_len")) is not None:
                break
            name = entry.get("parent")
        else:
            return None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise EngineRefused(f"{url}/v1/models did not return a list of models; is this a vLLM server?") from None
    if type(context_length) is not int or context_length < 1:
        raise EngineRefused(
            f"{url}/v1/models reports the max_model_len {context_length!r} for the model {name!r}, but it must be a "
            "positive integer. Is engine.urls the root of a vLLM server, without a proxy that changes answers?"
        )
    return context_length
