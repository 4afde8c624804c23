"""Our own engines are recognised by their list of models."""

from typing import Any

import orjson
import pytest

from rollout.doctor.engines.own_engine import is_own_engine
from rollout.doctor.engines.under_test import EngineUnderTest
from rollout.engine.errors import EngineRefused
from rollout.engine.stand_in import StandInEngine


class NamedConfig:
    """A configuration of which only `model.name` is used."""

    class model:  # noqa: N801 - the name of the section
        name = "tiny"


def engine(answer: bytes) -> EngineUnderTest:
    async def respond(url: str, body: bytes) -> tuple[int, bytes]:
        return 200, answer

    unused: Any = None
    config: Any = NamedConfig()
    return EngineUnderTest("http://engine", config, unused, StandInEngine(respond), unused, unused, unused)


@pytest.mark.parametrize(
    ("name", "owner", "is_own"), [("tiny", "rollout", True), ("tiny", "vllm", False), ("other", "rollout", False)]
)
async def test_the_owner_of_the_model_decides(name: str, owner: str, is_own: bool) -> None:
    models = orjson.dumps({"data": [{"id": name, "owned_by": owner}]})
    assert await is_own_engine(engine(models)) is is_own


async def test_a_model_without_an_owner_is_not_ours() -> None:
    assert not await is_own_engine(engine(b'{"data": [{"id": "tiny"}]}'))


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"data": [1]}'])
async def test_an_unknown_list_of_models_is_an_error(answer: bytes) -> None:
    with pytest.raises(EngineRefused, match="/v1/models answers in an unknown form"):
        await is_own_engine(engine(answer))
