"""Redis servers with TLS, with users, without some commands, and servers that are not there."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from rollout.trainer import TrajectoryReader
from tests.needs.services.redis_server import RedisServer, free_port
from tests.unit.cli.in_process import run_cli
from transports import QueueStorageError, open_queue

NEEDED = "+@read +@write +@stream +@scripting +@transaction +@connection +time"


async def exchange_one(url: str) -> None:
    """Send a record through a queue, and wait until its lease is renewed."""
    async with open_queue(url) as queue:
        await queue.put((b"secret",), key="k")
        delivery = await queue.receive(timeout=10)
        assert delivery is not None
        assert await queue.receive(timeout=0.3) is None
        await delivery.ack()
        assert (await queue.stats()).backlog_records == 0


# TLS


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority (`ca.crt`) and a certificate that it signed (`server.crt` and `server.key`)."""
    directory = tmp_path_factory.mktemp("certificates")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    signed_by = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
    for command in (
        ("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=tests"),
        ("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server"),
        ("x509", "-req", "-in", "server.csr", *signed_by, "-out", "server.crt"),
    ):
        subprocess.run(["openssl", *command], cwd=directory, check=True, capture_output=True)
    return directory


@pytest.fixture(scope="session")
def tls_address(start_redis: Callable[..., RedisServer], certificates: Path) -> str:
    port = free_port()
    start_redis(
        *("--tls-port", str(port), "--tls-auth-clients", "no", "--tls-ca-cert-file", str(certificates / "ca.crt")),
        *("--tls-cert-file", str(certificates / "server.crt"), "--tls-key-file", str(certificates / "server.key")),
    )
    return f"rediss://127.0.0.1:{port}/0"


async def test_a_server_with_tls_is_trusted_by_the_authority_that_the_url_names(
    tls_address: str, certificates: Path
) -> None:
    await exchange_one(f"{tls_address}?ca_file={certificates}/ca.crt&lease_time=0.2")


async def test_a_server_with_an_untrusted_certificate_is_refused_at_once(tls_address: str) -> None:
    async with open_queue(tls_address) as queue:
        with pytest.raises(QueueStorageError, match=r"certificate .* not trusted.* ca_file"):
            await queue.stats()


# Users


@pytest.fixture(scope="session")
def guarded(start_redis: Callable[..., RedisServer], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A server whose user `rollout`, with the password `p@ss/word`, has all rights; others may only read."""
    users = tmp_path_factory.mktemp("users") / "users.acl"
    users.write_text(
        f"user default off\nuser rollout on >p@ss/word ~* {NEEDED}\n"
        "user reader on >readonly ~* +@read +@connection\n"
        "user scripted on >readonly ~* +@read +@connection +@scripting\n"
    )
    return start_redis("--aclfile", str(users)).url


async def test_a_user_and_a_password_in_the_url_open_the_queue(guarded: str) -> None:
    await exchange_one(guarded.replace("redis://", "redis://rollout:p%40ss%2Fword@") + "?lease_time=0.2")


async def test_a_user_and_a_password_in_the_environment_open_the_queue(
    guarded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_USERNAME", "rollout")
    monkeypatch.setenv("REDIS_PASSWORD", "p@ss/word")
    await exchange_one(f"{guarded}?stream=environment&lease_time=0.2")


@pytest.mark.parametrize("user", ["", "rollout:wrong@", "nobody:p%40ss%2Fword@"])
async def test_an_unknown_user_is_an_error_at_once(guarded: str, user: str) -> None:
    async with open_queue(guarded.replace("redis://", f"redis://{user}")) as queue:
        with pytest.raises(QueueStorageError, match="the user or the password"):
            await queue.stats()


@pytest.mark.parametrize("user", ["reader", "scripted"])
async def test_a_user_without_the_needed_rights_is_a_named_error(guarded: str, user: str) -> None:
    async with open_queue(guarded.replace("redis://", f"redis://{user}:readonly@")) as queue:
        with pytest.raises(QueueStorageError, match="this user may not use streams"):
            await queue.stats()


# `rollout doctor`


def doctor(repository: Path, url: str) -> tuple[int, str, str]:
    """Return the exit code of doctor, and the status and the message of its line `queue`."""
    config = str(repository / "configs" / "color_codeword.yaml")
    ended = run_cli("doctor", config, "--json", "--set", f"queue.url={url}")
    (queue,) = [check for check in json.loads(ended.stdout)["checks"] if check["subject"] == "queue"]
    return ended.returncode, queue["status"], queue["message"]


def test_doctor_asks_a_server_and_creates_nothing(repository: Path, guarded: str) -> None:
    url = guarded.replace("redis://", "redis://rollout:p%40ss%2Fword@")
    code, status, message = doctor(repository, f"{url}?stream=asked")
    assert (code, status) == (0, "ok")
    assert "the server answers and takes writes; the queue does not exist yet" in message
    with redis.Redis.from_url(url) as client:
        assert client.keys("*asked*") == []


def test_doctor_finds_the_partitions_of_a_queue(repository: Path, guarded: str) -> None:
    url = guarded.replace("redis://", "redis://rollout:p%40ss%2Fword@") + "?stream=found"

    async def create_queue() -> None:
        async with open_queue(f"{url}&partitions=3") as queue:
            await queue.stats()

    asyncio.run(create_queue())
    code, status, message = doctor(repository, url)
    assert (code, status) == (0, "ok")
    assert "the queue has partitions=3" in message
    code, status, message = doctor(repository, f"{url}&partitions=2")
    assert (code, status) == (2, "bad")
    assert "the queue was created with partitions=3; use that number" in message


@pytest.mark.parametrize(
    ("user", "problem"),
    [
        ("rollout:wrong", "the server refuses the user or the password"),
        ("scripted:readonly", "this user may not use streams"),
    ],
)
def test_doctor_names_what_a_server_refuses(repository: Path, guarded: str, user: str, problem: str) -> None:
    code, status, message = doctor(repository, guarded.replace("redis://", f"redis://{user}@"))
    assert (code, status) == (1, "bad")
    assert problem in message


def test_doctor_finds_a_key_of_another_program(repository: Path, start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis()
    with redis.Redis.from_url(server.url) as client:
        client.set("{taken}:queue", "mine")
    code, status, message = doctor(repository, f"{server.url}?stream=taken")
    assert (code, status) == (1, "bad")
    assert "{taken}:queue has the type string instead of hash" in message


def test_doctor_finds_a_server_that_takes_no_writes(repository: Path, start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis("--replicaof", "127.0.0.1", str(free_port()), "--replica-serve-stale-data", "yes")
    code, status, message = doctor(repository, server.url)
    assert (code, status) == (1, "bad")
    assert "this server is a read-only replica" in message


def test_doctor_finds_a_server_that_is_out_of_memory(repository: Path, start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis("--maxmemory", "1kb")
    code, status, message = doctor(repository, server.url)
    assert (code, status) == (1, "bad")
    assert "the server is out of memory" in message


# Servers that lack something


@pytest.mark.parametrize("command", ["XADD", "XGROUP", "XREADGROUP", "EVAL", "EVALSHA"])
async def test_a_server_without_a_command_is_another_error_than_a_server_that_is_away(
    start_redis: Callable[..., RedisServer], command: str
) -> None:
    server = start_redis("--rename-command", command, "")
    with pytest.raises(
        QueueStorageError, match=r"does not have a command that the queue needs; use Redis 6\.2 or later"
    ):
        await exchange_one(server.url)


# No server


@pytest.fixture
def nobody() -> str:
    """The address of a server that is not there."""
    return f"redis://ours:hidden@127.0.0.1:{free_port()}/0"


@pytest.fixture
def unwaiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the wait for a server that is away so long that a test would fail."""
    monkeypatch.setattr("transports.redis_streams.server.RETRY_SECONDS", 3600.0)


@pytest.mark.usefixtures("unwaiting")
async def test_a_server_that_is_not_there_is_an_error_at_once_without_its_password(nobody: str) -> None:
    async with asyncio.timeout(10), open_queue(nobody) as queue:
        with pytest.raises(
            QueueStorageError, match=r"ours:\*\*\*@127\.0\.0\.1.*connection refused.*Start the Redis server"
        ) as error:
            await queue.stats()
    assert "hidden" not in str(error.value)


@pytest.mark.usefixtures("unwaiting")
async def test_an_unknown_host_is_an_error_at_once() -> None:
    async with asyncio.timeout(20), open_queue("redis://nobody.invalid/0") as queue:
        with pytest.raises(QueueStorageError, match=r"nobody\.invalid/0: this host is not known"):
            await queue.stats()


@pytest.mark.usefixtures("unwaiting")
async def test_a_trainer_without_a_server_ends_at_once(nobody: str) -> None:
    async with asyncio.timeout(10), TrajectoryReader(open_queue(nobody)) as reader:
        with pytest.raises(QueueStorageError, match="connection refused"):
            await reader.receive(timeout=60)


@pytest.mark.usefixtures("unwaiting")
async def test_a_server_that_is_just_started_again_is_waited_for(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.kill()
    try:
        async with asyncio.timeout(60), open_queue(server.url) as queue:
            waiting = asyncio.create_task(queue.stats())
            await asyncio.sleep(0.1)
            server.start()
            assert (await waiting).backlog_records == 0
    finally:
        server.kill()


@pytest.mark.usefixtures("unwaiting")
async def test_a_server_that_answered_once_is_waited_for(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, "--appendonly", "yes")
    try:
        async with asyncio.timeout(60), open_queue(server.url) as queue, open_queue(server.url) as other_handle:
            await queue.put((b"one",), key="k")
            server.kill()
            waiting = asyncio.create_task(other_handle.stats())
            await asyncio.sleep(0.3)
            assert not waiting.done()
            server.start()
            assert (await waiting).backlog_records == 1
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("run", "queue.url"),
        *(("launch", key) for key in ("queue.url", "queue.tasks", "queue.control")),
        ("worker", "queue.url"),
        ("worker", "queue.tasks"),
    ],
)
def test_a_command_without_a_server_is_one_paragraph_and_exit_code_1(
    repository: Path, tmp_path: Path, nobody: str, command: str, key: str
) -> None:
    config = str(repository / "configs" / "color_codeword.yaml")
    settings = ("--set", f"{key}={nobody}?stream=one", "--set", f"run.directory={tmp_path}")
    ended = subprocess.run(
        [sys.executable, "-m", "rollout", command, config, *settings],
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "connection refused). Start the Redis server, or correct this URL." in ended.stderr
    assert "hidden" not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.usefixtures("unwaiting")
def test_a_peek_without_a_server_is_an_error_at_once(nobody: str) -> None:
    ended = run_cli("queue", "stats", nobody)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "connection refused). Start the Redis server" in ended.stderr
