"""From the YAML to a client: every key arrives, and the API key stays out of everything that is written."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from rollout.config.load import load_config
from rollout.config.source import ConfigFileError
from rollout.engine.aiohttp_transport import AiohttpTransport
from rollout.engine.from_config import api_key_from_config, engine_client_from_config
from rollout.errors import ConfigurationError

URL = "http://127.0.0.1:8000"


@pytest.fixture
def example(repository: Path) -> Path:
    return repository / "configs" / "color_codeword.yaml"


def test_the_key_is_read_from_the_environment_and_never_dumped(example: Path) -> None:
    config = load_config(example, ["engine.api_key_env=ENGINE_KEY"])
    client = engine_client_from_config(config, [URL], None, environment={"ENGINE_KEY": "s3cret"})
    transport = client._transport
    assert isinstance(transport, AiohttpTransport)
    assert transport._api_key == SecretStr("s3cret")
    assert "s3cret" not in f"{config.to_dict()} {config!r} {client.__dict__!r} {transport.__dict__!r}"


def test_a_line_break_after_the_key_is_not_part_of_it(example: Path) -> None:
    config = load_config(example, ["engine.api_key_env=ENGINE_KEY"])
    assert api_key_from_config(config, {"ENGINE_KEY": " s3cret\n"}) == "s3cret"


@pytest.mark.parametrize("key", ["s3cret\nx-other: 1", "s3crét"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(example: Path, key: str) -> None:
    config = load_config(example, ["engine.api_key_env=ENGINE_KEY"])
    with pytest.raises(ConfigurationError, match="ENGINE_KEY") as refused:
        api_key_from_config(config, {"ENGINE_KEY": key})
    assert "s3cr" not in str(refused.value)


def test_a_key_instead_of_the_name_of_its_variable_is_refused_and_not_shown(example: Path) -> None:
    with pytest.raises(ConfigFileError, match="the name of an environment variable") as refused:
        load_config(example, ["engine.api_key_env=sk-s3cret"])
    assert "s3cret" not in str(refused.value)


def test_a_variable_that_is_not_set_is_named(example: Path) -> None:
    config = load_config(example, ["engine.api_key_env=ENGINE_KEY"])
    with pytest.raises(ConfigurationError, match="ENGINE_KEY"):
        engine_client_from_config(config, [URL], None, environment={})


@pytest.mark.parametrize(
    ("url", "expected_text"),
    [
        ("127.0.0.1:8000", "the root URL of a server"),
        ("http://127.0.0.1:8000/v1", "without /v1"),
        ("ftp://host", "the root URL of a server"),
        ("http://me:s3cret@host:8000", "engine.api_key_env"),
    ],
)
def test_a_url_that_is_not_the_root_of_an_engine_is_refused(example: Path, url: str, expected_text: str) -> None:
    with pytest.raises(ConfigFileError) as refused:
        load_config(example, [f'engine.urls=["{url}"]'])
    assert expected_text in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_deadlines_retries_and_affinity_arrive(example: Path) -> None:
    keys = ["engine.timeout=60", "engine.request_timeout=20", "engine.retries=2", "engine.affinity=true"]
    client = engine_client_from_config(load_config(example, keys), [URL], None, environment={})
    assert (client._answer_timeout, client._try_timeout, client._max_tries, client._affinity) == (60, 20, 3, True)
