"""An environment that asks a judge, which all rollouts of a worker share, and a judge that fails some calls."""

import json
import threading
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import Field

from rollout import Environment, EnvironmentSettings, Model, Score, Task
from rollout.judge import Judge

FAILURES_PER_HUNDRED = 20


class JudgedSettings(EnvironmentSettings):
    judge_url: str = Field(description="The judge's base URL.")


class Judged(Environment):
    Settings = JudgedSettings
    shared_resources: Judge

    @classmethod
    @asynccontextmanager
    async def shared(cls, settings: JudgedSettings) -> AsyncIterator[Judge]:
        async with Judge(settings.judge_url, "a-judge", api_key="sk-flaky", max_tries=1, timeout=30) as judge:
            yield judge

    async def run(self, task: Task, model: Model) -> Score:
        await model.chat([{"role": "user", "content": f"Heads or tails? {task.id}"}])
        verdict = await self.shared_resources.ask(f"How good was {task.id}?")
        return Score(float(verdict))


@dataclass
class FlakyJudge:
    """Counts the calls of a judge and its failures."""

    url: str = ""
    calls: Counter[str] = field(default_factory=Counter)
    failures: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count_call(self, question: str) -> bool:
        """Count a call, and return whether it fails. This depends only on the question and the number of its calls."""
        with self.lock:
            self.calls[question] += 1
            fails = zlib.crc32(f"{question} {self.calls[question]}".encode()) % 100 < FAILURES_PER_HUNDRED
            self.failures += fails
            return fails


@contextmanager
def serve_flaky_judge() -> Iterator[FlakyJudge]:
    judge = FlakyJudge()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if judge.count_call(body["messages"][0]["content"]):
                self._fail(judge.failures)
            else:
                self._answer({"message": {"content": "0.5"}, "finish_reason": "stop"})

        def _fail(self, number: int) -> None:
            """Fail in one of three ways, in turns."""
            if number % 3 == 0:
                self.send_error(503)
            elif number % 3 == 1:
                self.close_connection = True
            else:
                self._answer({"message": {"content": ""}, "finish_reason": "content_filter"})

        def _answer(self, choice: dict[str, Any]) -> None:
            answer = json.dumps({"choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
