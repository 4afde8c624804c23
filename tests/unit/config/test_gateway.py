"""The section `gateway`: what is accepted, what its errors say, and what a worker of a launch makes of it."""

import json
from pathlib import Path

import pytest

from rollout.config.gateway import GatewayConfig, GatewayLimits
from rollout.config.load import Config, load_config
from rollout.config.source import ConfigFileError

YAML = """\
environment: {class: 'rollout.environments.color_codeword:ColorCodeword'}
tasks: {count: 2}
model: {name: tiny, path: models/tiny, renderer: qwen3-vl}
"""


def load(directory: Path, *overrides: str) -> Config:
    path = directory / "env.yaml"
    path.write_text(YAML)
    return load_config(path, overrides)


def load_error(directory: Path, override: str) -> str:
    with pytest.raises(ConfigFileError) as caught:
        load(directory, override)
    return str(caught.value)


def test_without_the_section_the_gateway_is_reached_from_this_machine_alone(tmp_path: Path) -> None:
    gateway = load(tmp_path).gateway
    assert (gateway.host, gateway.port, gateway.advertise, gateway.unix_socket) == ("127.0.0.1", 0, None, None)
    assert (gateway.echo, gateway.sampling, gateway.constrained) == ("tolerant", "ours", "refuse")
    assert gateway.limits == GatewayLimits(turns=None, tokens=None, seconds=None, parallel=16)


def test_a_limit_is_set_by_an_override(tmp_path: Path) -> None:
    limits = load(tmp_path, "gateway.limits.turns=20", "gateway.limits.seconds=1.5").gateway.limits
    assert limits == GatewayLimits(turns=20, seconds=1.5)


@pytest.mark.parametrize(
    ("override", "expected_text"),
    [
        ("gateway.host=http://127.0.0.1", "gateway.host: expected a host name or an IP address alone"),
        ("gateway.host=127.0.0.1:80", "gateway.host: expected a host name or an IP address alone"),
        ("gateway.host=''", "gateway.host: expected a host name or an IP address alone"),
        ("gateway.host='[::1]'", "gateway.host: expected a host name or an IP address alone"),
        (f"gateway.host={'a.' * 127}a", "gateway.host: expected a host name or an IP address alone"),
        ("gateway.port=65536", "gateway.port: Input should be less than or equal to 65535, found 65536"),
        ("gateway.port=-1", "gateway.port: Input should be greater than or equal to 0, found -1"),
        ("gateway.max_body_bytes=1023", "gateway.max_body_bytes: Input should be greater than or equal to 1024"),
        (
            "gateway.max_body_bytes=1073741825",
            "gateway.max_body_bytes: Input should be less than or equal to 107374182",
        ),
        ("gateway.limits.turns=0", "gateway.limits.turns: Input should be greater than or equal to 1, found 0"),
        ("gateway.limits.tokens=0", "gateway.limits.tokens: Input should be greater than or equal to 1, found 0"),
        ("gateway.limits.parallel=0", "gateway.limits.parallel: Input should be greater than or equal to 1, found 0"),
        ("gateway.limits.seconds=0", "gateway.limits.seconds: Input should be greater than 0, found 0"),
        ("gateway.limits.turn=1", "gateway.limits.turn: unknown key; did you mean 'turns'?"),
        ("gateway.echo=strict", "gateway.echo: Input should be 'tolerant' or 'exact', found 'strict'"),
    ],
)
def test_a_value_that_is_not_valid_is_refused(tmp_path: Path, override: str, expected_text: str) -> None:
    assert expected_text in load_error(tmp_path, override)


@pytest.mark.parametrize("host", ["0.0.0.0", "::1", "gateway", "worker-1.example"])
def test_a_name_or_an_address_of_either_kind_is_a_host(tmp_path: Path, host: str) -> None:
    assert load(tmp_path, f"gateway.host='{host}'").gateway.host == host


@pytest.mark.parametrize(
    "address",
    ["http://gateway", "http://gateway:80", "gateway/v1", "gateway:0", "gateway:65536", "gateway:", ":80", "::1",
     "[gateway]:80", "[::1", "[fe80::1%eth0]:80", "me:pw@gateway", "a b", ""],
)  # fmt: skip
def test_an_advertised_address_with_anything_but_host_and_port_is_refused(tmp_path: Path, address: str) -> None:
    assert "gateway.advertise: expected a host name or HOST:PORT" in load_error(
        tmp_path, f"gateway.advertise='{address}'"
    )


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({}, "127.0.0.1:4000"),
        ({"host": "0.0.0.0"}, "127.0.0.1:4000"),
        ({"host": "::"}, "[::1]:4000"),
        ({"host": "fd00::7"}, "[fd00::7]:4000"),
        ({"host": "worker-1"}, "worker-1:4000"),
        ({"advertise": "gateway.example"}, "gateway.example:4000"),
        ({"advertise": "gateway.example:80"}, "gateway.example:80"),
        ({"advertise": "[fd00::7]"}, "[fd00::7]:4000"),
        ({"advertise": "[fd00::7]:80"}, "[fd00::7]:80"),
    ],
)
def test_programs_get_an_address_that_they_can_reach(settings: dict[str, str], address: str) -> None:
    assert GatewayConfig.model_validate(settings).advertised_address(4000) == address


def test_a_relative_socket_is_in_the_directory_of_the_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout.config.gateway.MAX_SOCKET_PATH_BYTES", 1000)  # the directory of a test is long
    assert load(tmp_path, "gateway.unix_socket=run/a").gateway.unix_socket == tmp_path / "run" / "a"
    assert load(tmp_path, "gateway.unix_socket=/run/a").gateway.unix_socket == Path("/run/a")


def test_a_socket_whose_path_no_system_accepts_is_refused_with_its_length(tmp_path: Path) -> None:
    longest = f"/{'x' * 94}"
    assert load(tmp_path, f"gateway.unix_socket={longest}").gateway.unix_socket == Path(longest)
    message = load_error(tmp_path, f"gateway.unix_socket={longest}x")
    assert "gateway.unix_socket: the path of the socket, with its directory, has 96 bytes" in message
    assert "use a shorter one, such as /tmp/gateway.sock" in message
    assert "has 97 bytes" in load_error(tmp_path, f"gateway.unix_socket={longest[:-1]}ßx")


def test_the_workers_of_a_launch_share_no_port_and_no_socket() -> None:
    section = GatewayConfig(port=4000, advertise="[fd00::7]:80", unix_socket=Path("/run/gateway.sock"))
    worker, other = section.for_launched_worker(12), section.for_launched_worker(4194304)
    assert (worker.port, worker.unix_socket) == (0, Path("/run/gateway.sock.12"))
    assert other.unix_socket == Path("/run/gateway.sock.4194304")
    assert worker.advertised_address(5000) == "[fd00::7]:5000"


def test_a_worker_of_a_launch_keeps_the_other_keys() -> None:
    section = GatewayConfig(advertise="gateway", echo="exact", limits=GatewayLimits(turns=3))
    assert section.for_launched_worker(12) == section


def test_the_digest_of_a_configuration_without_the_section_is_that_of_earlier_versions(tmp_path: Path) -> None:
    assert load(tmp_path).digest() == "b9b7e03f7375d9dd"
    addresses = ("gateway.host=::1", "gateway.port=4000", "gateway.advertise=gateway", "gateway.unix_socket=/run/a")
    assert load(tmp_path, *addresses, "gateway.limits.parallel=16").digest() == "b9b7e03f7375d9dd"


@pytest.mark.parametrize("override", ["gateway.limits.turns=20", "gateway.sampling=theirs", "gateway.echo=exact"])
def test_the_digest_depends_on_the_keys_that_decide_what_is_played(tmp_path: Path, override: str) -> None:
    assert load(tmp_path, override).digest() != load(tmp_path).digest()


def test_the_configuration_of_a_run_says_the_whole_section(tmp_path: Path) -> None:
    written = load(tmp_path, "gateway.unix_socket=/run/a", "gateway.limits.turns=20").as_written()["gateway"]
    assert GatewayConfig.model_validate_json(json.dumps(written)) == GatewayConfig(
        unix_socket=Path("/run/a"), limits=GatewayLimits(turns=20)
    )
