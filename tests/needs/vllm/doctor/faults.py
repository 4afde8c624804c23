"""Faults of our own side: each breaks a sound set-up in one place, and says what doctor must find."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.needs.vllm.doctor.bench import Bench, unused_port

Break = Callable[[Bench], object]
Repair = Callable[[Bench, str], object]

_CHECKPOINT_FIX = "set model.path to the directory of the checkpoint that the engine serves"


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, and what doctor says about it.

    Attributes:
        name: what is wrong, for the name of the test.
        break_: breaks the set-up.
        subject: the last word of the subject of the one bad line.
        message: a text that the line contains.
        fix: a text that the fix contains, or the line itself if it says what to do.
        repair: does what the fix says; it gets the line and the fix.
        server: the server of the set-up.
        forward: whether only the forward pass can see it.
        exit_code: doctor's exit code.
    """

    name: str
    break_: Break
    subject: str
    message: str
    fix: str
    repair: Repair
    server: str = "qwen3-vl"
    forward: bool = False
    exit_code: int = 1


def _follow(bench: Bench, fix: str) -> None:
    bench.follow(fix)


def _use_checkpoint(bench: Bench, fix: str) -> None:
    bench.set(model__path=bench.live.model_dir)


def _use_original_processor(bench: Bench, fix: str) -> None:
    """Copy the processor's configuration from the checkpoint again."""
    name = "preprocessor_config.json"
    (bench.settings["model.path"] / name).write_bytes((bench.live.model_dir / name).read_bytes())


def _renderer(name: str) -> Break:
    return lambda bench: bench.set(model__renderer=name)


def _renderer_without_model_type(name: str) -> Break:
    def break_(bench: Bench) -> None:
        (bench.copy_checkpoint() / "config.json").unlink()
        bench.set(model__renderer=name)

    return break_


def _tokenizer(edit: Callable[[Any], object]) -> Break:
    return lambda bench: bench.edit_json("tokenizer.json", edit)


def _swap(one: str, other: str) -> Callable[[Any], None]:
    def edit(tokenizer: Any) -> None:
        first, second = (next(t for t in tokenizer["added_tokens"] if t["content"] == name) for name in (one, other))
        first["content"], second["content"] = second["content"], first["content"]
        first["special"], second["special"] = second["special"], first["special"]

    return edit


def _remove_added_token(name: str) -> Callable[[Any], None]:
    def edit(tokenizer: Any) -> None:
        tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != name]

    return edit


def _remove_merge(tokenizer: Any) -> None:
    tokenizer["model"]["merges"].pop(500)


def _swap_merges(tokenizer: Any) -> None:
    merges = tokenizer["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]


def _divide_words_from_spaces(tokenizer: Any) -> None:
    pattern = tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    pattern["Regex"] = "\\p{L}+|" + pattern["Regex"].replace("[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|", "")


def _normalise(tokenizer: Any) -> None:
    tokenizer["normalizer"] = {"type": "NFC"}


def _processor(**changes: Any) -> Break:
    return lambda bench: bench.edit_json("preprocessor_config.json", lambda config: config.update(changes))


def _set(**settings: Any) -> Break:
    return lambda bench: bench.set(**settings)


def _unset(name: str) -> Repair:
    return lambda bench, fix: bench.settings.pop(name)


def _other_weights(bench: Bench) -> None:
    bench.set(model__path=bench.make_checkpoint("qwen3-vl", seed=1))


def _high_water(bench: Bench) -> None:
    bench.set(queue__url=f"file://{bench.directory}/trajectories?high_water=80KB")


def _raise_high_water(bench: Bench, fix: str) -> None:
    bench.set(queue__url=f"file://{bench.directory}/trajectories?high_water=200MB")


def _queue_below_a_file(bench: Bench) -> None:
    (bench.directory / "file").touch()
    bench.set(queue__url=f"file://{bench.directory}/file/trajectories")


def _use_another_queue(bench: Bench, fix: str) -> None:
    bench.set(queue__url="file://{run_dir}/trajectories")


def _runs_elsewhere(bench: Bench) -> None:
    bench.set(run__directory=bench.directory / "elsewhere")


def _runs_where_the_server_reads(bench: Bench, fix: str) -> None:
    bench.set(run__directory=bench.media)


def _without_tokenizer(bench: Bench) -> None:
    (bench.copy_checkpoint() / "tokenizer.json").unlink()


def _without_processor(bench: Bench) -> None:
    (bench.copy_checkpoint() / "preprocessor_config.json").unlink()


def _without_key(bench: Bench) -> None:
    bench.settings.pop("engine.api_key_env")


def _wrong_key(bench: Bench) -> None:
    bench.monkeypatch.setenv("WRONG_KEY", "not-the-key")
    bench.set(engine__api_key_env="WRONG_KEY")


def _use_the_key(bench: Bench, fix: str) -> None:
    bench.use_key()


def _port_without_server(bench: Bench) -> None:
    bench.set(engine__urls=[f"http://127.0.0.1:{unused_port()}"])


def _use_the_server(bench: Bench, fix: str) -> None:
    bench.set(engine__urls=[bench.live.url])


FAULTS = (
    Fault("the renderer qwen3.5", _renderer("qwen3.5"), "model", "qwen3_vl", "model.renderer", _follow, exit_code=2),
    Fault("the renderer qwen3", _renderer("qwen3"), "model", "qwen3_vl", "model.renderer", _follow, exit_code=2),
    Fault(
        "the renderer qwen2.5-vl", _renderer("qwen2.5-vl"), "model", "qwen3_vl", "model.renderer", _follow, exit_code=2
    ),
    Fault(
        "the renderer qwen3-vl for another family",
        _renderer("qwen3-vl"),
        "model",
        "qwen2_5_vl",
        "model.renderer",
        _follow,
        server="qwen2.5-vl",
        exit_code=2,
    ),
    Fault(
        "the renderer qwen3.5, and no config.json",
        _renderer_without_model_type("qwen3.5"),
        "rendering",
        "<think>",
        "model.renderer",
        _follow,
    ),
    Fault(
        "an unknown template argument",
        _set(model__template={"add_vision_id": True}),
        "model",
        "add_vision_id",
        "remove the argument from model.template",
        _unset("model.template"),
        exit_code=2,
    ),
    Fault(
        "swapped ids of <tool_call> and <think>",
        _tokenizer(_swap("<tool_call>", "<think>")),
        "tokens",
        "<tool_call>",
        _CHECKPOINT_FIX,
        _use_checkpoint,
    ),
    Fault(
        "swapped ids of <|box_start|> and <|quad_end|>",
        _tokenizer(_swap("<|box_start|>", "<|quad_end|>")),
        "tokens",
        "<|box_start|>",
        _CHECKPOINT_FIX,
        _use_checkpoint,
    ),
    Fault(
        "a missing token",
        _tokenizer(_remove_added_token("<|quad_end|>")),
        "tokens",
        "tokenizer",
        _CHECKPOINT_FIX,
        _use_checkpoint,
    ),
    Fault("a missing merge", _tokenizer(_remove_merge), "tokens", "tokenizer", _CHECKPOINT_FIX, _use_checkpoint),
    Fault("merges in another order", _tokenizer(_swap_merges), "tokens", "tokenizer", _CHECKPOINT_FIX, _use_checkpoint),
    Fault(
        "another division into words",
        _tokenizer(_divide_words_from_spaces),
        "tokens",
        "tokenizer",
        _CHECKPOINT_FIX,
        _use_checkpoint,
    ),
    Fault(
        "another normalisation of text", _tokenizer(_normalise), "tokens", "tokenizer", _CHECKPOINT_FIX, _use_checkpoint
    ),
    Fault(
        "no tokenizer", _without_tokenizer, "model", "tokenizer.json", "tokenizer.json", _use_checkpoint, exit_code=2
    ),
    Fault(
        "no image processor",
        _without_processor,
        "model",
        "preprocessor_config.json",
        "copy one",
        _use_checkpoint,
        exit_code=2,
    ),
    Fault(
        "another patch size",
        _processor(patch_size=14),
        "images",
        "prompt",
        "preprocessor_config.json",
        _use_original_processor,
    ),
    Fault(
        "other pixel limits",
        _processor(size={"shortest_edge": 4096, "longest_edge": 16777216}),
        "images",
        "prompt",
        "preprocessor_config.json",
        _use_original_processor,
    ),
    Fault(
        "another resampling",
        _processor(resample=2),
        "pixels",
        "other patches",
        "preprocessor_config.json",
        _use_original_processor,
    ),
    Fault(
        "another normalisation of pixels",
        _processor(image_mean=[0.1, 0.2, 0.3], image_std=[0.3, 0.3, 0.3]),
        "forward",
        "log-probs",
        "preprocessor_config",
        _use_original_processor,
        forward=True,
    ),
    Fault("other weights", _other_weights, "forward", "log-probs", "model.path", _use_checkpoint, forward=True),
    Fault("no key", _without_key, "model", "401", "engine.api_key_env", _use_the_key, server="qwen2.5-vl"),
    Fault("a wrong key", _wrong_key, "model", "401", "engine.api_key_env", _use_the_key, server="qwen2.5-vl"),
    Fault(
        "a key variable that is not set",
        _set(engine__api_key_env="NO_SUCH_VARIABLE"),
        "engine",
        "NO_SUCH_VARIABLE",
        "NO_SUCH_VARIABLE",
        _unset("engine.api_key_env"),
        exit_code=2,
    ),
    Fault("another model name", _set(model__name="other"), "model", "it serves tiny", "model.name", _follow),
    Fault("no server at the port", _port_without_server, "model", "no answer", "rollout serve vllm", _use_the_server),
    Fault(
        "a URL with /v1",
        lambda bench: bench.set(engine__urls=[f"{bench.live.url}/v1"]),
        "file",
        "engine.urls.0",
        "without /v1",
        _use_the_server,
        exit_code=2,
    ),
    Fault(
        "runs where the server may not read",
        _runs_elsewhere,
        "images",
        "finds no file",
        "--allowed-local-media-path",
        _runs_where_the_server_reads,
    ),
    Fault(
        "a high water below two batches",
        _high_water,
        "queue",
        "two batches",
        "Raise high_water",
        _raise_high_water,
        exit_code=2,
    ),
    Fault(
        "a queue that cannot be made",
        _queue_below_a_file,
        "queue",
        "cannot be written",
        "give another directory",
        _use_another_queue,
    ),
)
