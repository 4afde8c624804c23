"""`rollout doctor --forward` finds each fault of the server's side, and blames no unusual server.

Each test starts a server of its own, which takes a minute. So they run only with ROLLOUT_TESTS=full.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rollout.doctor.results import CheckStatus, exit_code
from tests.needs.vllm.doctor.adapter import write_adapter
from tests.needs.vllm.doctor.bench import Bench, problems
from tests.needs.vllm.servers import LiveServer, ServerStarter

pytestmark = pytest.mark.skipif(
    os.environ.get("ROLLOUT_TESTS") != "full", reason="each test starts a server; set ROLLOUT_TESTS=full"
)

StartServer = Callable[..., LiveServer]


@pytest.fixture
def start_server(checkpoints: Callable[..., Path], media: Path, tmp_path: Path) -> Iterator[StartServer]:
    """Starts a server, and waits until it answers."""
    starter = ServerStarter(checkpoints, media, tmp_path)

    def start(*flags: str, family: str = "qwen3-vl", **options: Any) -> LiveServer:
        live = starter.start("server", family, *flags, **options)
        live.wait_until_ready()
        return live

    yield start
    starter.stop_all()


@dataclass(frozen=True, slots=True)
class ServerFault:
    """A server that is started in a wrong way, and what doctor says about it.

    Attributes:
        subject: the last word of the subject of the one bad line.
        text: a text that this line or its fix contains.
        flags: the flags of the server; `{copy}` is a copy of the checkpoint.
        edit: changes the copy of the checkpoint.
        options: other options of the server.
        other_media: whether the server reads images from another directory.
        settings: keys of the YAML.
        model: the checkpoint that the server loads, if it is the copy.
    """

    subject: str
    text: str
    flags: tuple[str, ...] = ()
    edit: Callable[[Path], object] = lambda copy: None
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    other_media: bool = False
    serves_copy: bool = False


def _edit_json(name: str, edit: Callable[[Any], object]) -> Callable[[Path], None]:
    def change(copy: Path) -> None:
        value = json.loads((copy / name).read_text("utf-8"))
        edit(value)
        (copy / name).write_text(json.dumps(value, ensure_ascii=False), "utf-8")

    return change


def _without_new_line_before_results(copy: Path) -> None:
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text("utf-8").replace("\\n<tool_response>", "<tool_response>"), "utf-8")


def _with_thinking(copy: Path) -> None:
    template = copy / "chat_template.jinja"
    text = template.read_text("utf-8")
    template.write_text(
        text.replace(
            "<|im_start|>assistant\\n' -}}{%- endif -%}", "<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}"
        ),
        "utf-8",
    )


SERVER_FAULTS = {
    "another chat template": ServerFault(
        "rendering",
        "tool_response",
        ("--chat-template", "{copy}/chat_template.jinja"),
        _without_new_line_before_results,
    ),
    "a template that begins reasoning": ServerFault("rendering", "<think>", edit=_with_thinking, serves_copy=True),
    "another tokenizer": ServerFault(
        "tokens",
        "model.path",
        ("--tokenizer", "{copy}"),
        _edit_json("tokenizer.json", lambda tokenizer: tokenizer["model"]["merges"].pop(500)),
    ),
    "no token endpoint": ServerFault("endpoint", "--enable-scale-out", ("--no-enable-scale-out",)),
    "another media directory": ServerFault("images", "--allowed-local-media-path", other_media=True),
    "other pixel limits": ServerFault(
        "images", "prompt", ("--mm-processor-kwargs", '{"size": {"shortest_edge": 4096, "longest_edge": 16777216}}')
    ),
    "one image for each prompt": ServerFault("images", "image", ("--limit-mm-per-prompt", '{"image": 1}')),
    "no routes for new weights": ServerFault(
        "weights", "VLLM_SERVER_DEV_MODE", options={"updates": False}, settings={"policy.max_staleness": 1}
    ),
    "another resampling": ServerFault(
        "pixels",
        "other patches",
        edit=_edit_json("preprocessor_config.json", lambda config: config.update(resample=2)),
        serves_copy=True,
    ),
    "another normalisation": ServerFault(
        "forward",
        "log-probs",
        edit=_edit_json("preprocessor_config.json", lambda config: config.update(image_mean=[0.1, 0.2, 0.3])),
        serves_copy=True,
    ),
}


@pytest.mark.parametrize("fault", SERVER_FAULTS.values(), ids=SERVER_FAULTS)
def test_a_fault_of_the_server_is_found(
    fault: ServerFault,
    start_server: StartServer,
    bench_of: Callable[[LiveServer], Bench],
    checkpoints: Callable[..., Path],
    tmp_path: Path,
) -> None:
    checkpoint = checkpoints("qwen3-vl")
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    fault.edit(copy)
    flags = [flag.replace("{copy}", str(copy)) for flag in fault.flags]
    media = {"media": tmp_path / "media"} if fault.other_media else {}
    live = start_server(*flags, **fault.options, **media, **({"model": copy} if fault.serves_copy else {}))
    bench = bench_of(live)
    bench.set(model__path=checkpoint)
    bench.settings |= fault.settings
    results = bench.check(forward=True)
    bad = [result for result in results if result.status is CheckStatus.BAD]
    assert [result.subject.rpartition(" ")[2] for result in bad] == [fault.subject], results
    assert fault.text in f"{bad[0].message} {bad[0].fix}"
    assert exit_code(results) == 1


def test_a_paused_server_is_found(start_server: StartServer, bench_of: Callable[[LiveServer], Bench]) -> None:
    live = start_server()
    with live.http() as server:
        server.post("/pause?mode=wait").raise_for_status()
    (bad,) = problems(bench_of(live).check(forward=True))
    assert bad.subject.endswith("weights")


def test_weights_that_are_not_those_of_the_checkpoint_are_found(
    start_server: StartServer, bench_of: Callable[[LiveServer], Bench], checkpoints: Callable[..., Path]
) -> None:
    live = start_server()
    update = {"method": "reload_weights", "kwargs": {"weights_path": str(checkpoints("qwen3-vl", seed=1))}}
    with live.http() as server:
        server.post("/collective_rpc", json=update).raise_for_status()
    (bad,) = problems(bench_of(live).check(forward=True))
    assert bad.subject.endswith("forward")


UNUSUAL = {
    "two API servers": ("--api-server-count", "2"),
    "speculation": ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}'),
    "no cache": ("--mm-processor-cache-gb", "0", "--no-enable-prefix-caching"),
    "log-probs before the temperature": ("--logprobs-mode", "raw_logprobs"),
}


@pytest.mark.parametrize("flags", UNUSUAL.values(), ids=UNUSUAL)
def test_an_unusual_server_is_not_blamed(
    flags: tuple[str, ...], start_server: StartServer, bench_of: Callable[[LiveServer], Bench]
) -> None:
    results = bench_of(start_server(*flags)).check(forward=True)
    assert problems(results) == []
    assert exit_code(results) == 0


def test_an_adapter_is_not_blamed_and_has_the_context_of_its_model(
    start_server: StartServer,
    bench_of: Callable[[LiveServer], Bench],
    checkpoints: Callable[..., Path],
    tmp_path: Path,
) -> None:
    adapter = write_adapter(checkpoints("qwen3-vl"), tmp_path / "adapter")
    live = start_server(
        *("--enable-lora", "--lora-modules", f"tuned={adapter}"),
        variables={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"},
    )
    bench = bench_of(live)
    bench.set(model__name="tuned")
    results = bench.check(forward=True)
    assert problems(results) == []
    (context,) = [result.message for result in results if result.subject.endswith("model") and "http" in result.subject]
    assert "32768" in context.replace(",", "")
