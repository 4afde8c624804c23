"""Tests that need a service or an extra. They are collected only with ROLLOUT_SERVICES=1."""

import os
from collections.abc import Callable, Iterator

import pytest

from tests.needs.services.redis_server import RedisServer

if os.environ.get("ROLLOUT_SERVICES") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def start_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RedisServer]]:
    servers: list[RedisServer] = []

    def start(*arguments: str, binary: str = "redis-server") -> RedisServer:
        servers.append(RedisServer(tmp_path_factory.mktemp("redis"), *arguments, binary=binary))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def redis_server(start_redis: Callable[..., RedisServer]) -> RedisServer:
    return start_redis()
