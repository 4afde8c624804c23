"""An engine that is checked, and the exceptions by which a check ends without a finding."""

from dataclasses import dataclass

from renderers_adapter.adapter import RendererAdapter
from rollout.config.load import Config
from rollout.engine.client import EngineClient
from rollout.engine.request import GenerateRequest
from rollout.engine.transport import EngineTransport


class CheckFailed(Exception):
    """The check found something wrong.

    Attributes:
        fix: what corrects it; None if the message says it.
    """

    def __init__(self, message: str, fix: str | None = None) -> None:
        super().__init__(message)
        self.fix = fix


class CheckNotMade(Exception):
    """A check cannot be made here; the message says why, and what makes it possible."""


class CheckPartlyMade(Exception):
    """Only a part of a check can be made here; the message says what is proven, what is not, and why."""


class NothingToCheck(Exception):
    """The engine or the model has nothing that this check is about; the message says why."""


@dataclass(frozen=True, slots=True)
class EngineUnderTest:
    """An engine that is checked, and what its checks use.

    Attributes:
        url: the root URL of the engine.
        config: the configuration.
        adapter: the renderer of the configuration.
        transport: sends requests to the engine, with its API key.
        client: sends generate requests to this engine alone.
        text_request: a generate request without images.
        image_request: a generate request with new images, if the model takes images.
    """

    url: str
    config: Config
    adapter: RendererAdapter
    transport: EngineTransport
    client: EngineClient
    text_request: GenerateRequest
    image_request: GenerateRequest

    @property
    def model(self) -> str:
        """The name of the model in requests."""
        return self.config.model.name
