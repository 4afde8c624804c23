"""The loader of tokenizers, and the small tokenizer that we ship."""

import importlib.util
import json
import shutil
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from renderers.base import OffsetTokenizer, Tokenizer, _get_offset_tokenizer

from renderers_adapter.tokenizer import FastTokenizer, TokenizerError, load_tokenizer
from rollout.environments.palette import PALETTE

REPOSITORY = Path(__file__).parents[3]
SHIPPED = REPOSITORY / "rollout" / "serving" / "tiny_qwen3_vl"
TINY = load_tokenizer(SHIPPED)


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "model"))


def test_training_again_gives_the_same_bytes() -> None:
    spec = importlib.util.spec_from_file_location("train_tokenizer", REPOSITORY / "scripts" / "train_tokenizer.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    trained = script.train().to_str(pretty=True) + "\n"
    assert trained == (SHIPPED / "tokenizer.json").read_text(encoding="utf-8")


@given(st.text())
def test_any_text_survives_the_round_trip(text: str) -> None:
    assert TINY.decode(TINY.encode(text)) == text


@given(st.text(alphabet=st.characters(exclude_characters="<|>", exclude_categories=["Cs"])))
def test_every_character_belongs_to_a_token(text: str) -> None:
    encoding = TINY(text, return_offsets_mapping=True)
    assert encoding["input_ids"] == TINY.encode(text)
    covered = {index for start, end in encoding["offset_mapping"] for index in range(start, end)}
    assert covered == set(range(len(text)))


@pytest.mark.parametrize("word", [*PALETTE, "user", "assistant", "system"])
def test_a_word_of_answers_is_one_token_with_and_without_a_space(word: str) -> None:
    assert len(TINY.encode(word)) == 1
    assert len(TINY.encode(f" {word}")) == 1
    assert TINY.encode(f"{word}\n")[0] == TINY.encode(word)[0]


def test_half_a_character_is_refused_at_its_position() -> None:
    with pytest.raises(TokenizerError, match=r"lone surrogate \('\\ud83d'\) at character 3"):
        TINY.encode("red\ud83d")


def test_special_tokens_are_one_id_each_and_can_be_skipped_in_decoded_text() -> None:
    text = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>a<|im_end|><tool_call>"
    ids = TINY.encode(text)
    assert ids.count(TINY.token_id("<|image_pad|>")) == 1
    assert TINY.decode(ids) == text
    assert TINY.decode(ids, skip_special_tokens=True) == "user\na<tool_call>"


def test_renderers_sees_a_tokenizer_with_offsets() -> None:
    assert isinstance(TINY, Tokenizer)
    assert isinstance(TINY, OffsetTokenizer)
    assert _get_offset_tokenizer(TINY) is TINY


def test_tokens_and_ids_are_found_by_name() -> None:
    end = TINY.token_id("<|im_end|>")
    assert TINY.eos_token_id == end
    assert TINY.convert_tokens_to_ids(["<|im_end|>", "no such token"]) == [end, None]
    assert TINY.decode(end) == "<|im_end|>"
    assert TINY.vocab_size == 1024
    with pytest.raises(TokenizerError, match=r"no token '<\|nothing\|>'"):
        TINY.token_id("<|nothing|>")


def test_a_tokenizer_is_loaded_from_its_file_or_its_directory(model_dir: Path) -> None:
    by_file = load_tokenizer(str(model_dir / "tokenizer.json"))
    assert by_file.eos_token_id == load_tokenizer(model_dir).eos_token_id
    assert by_file.name_or_path == str(model_dir / "tokenizer.json")


def test_the_configuration_may_be_missing_or_give_tokens_as_objects(model_dir: Path) -> None:
    config = model_dir / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}, "unk_token": "<|endoftext|>"}))
    tokenizer = load_tokenizer(model_dir)
    assert tokenizer.eos_token_id == TINY.eos_token_id
    assert tokenizer.convert_tokens_to_ids("no such token") == tokenizer.unk_token_id == TINY.token_id("<|endoftext|>")
    config.unlink()
    assert load_tokenizer(model_dir).eos_token_id is None


def test_truncation_and_padding_of_a_saved_tokenizer_do_not_change_a_prompt(model_dir: Path) -> None:
    saved = json.loads((model_dir / "tokenizer.json").read_text(encoding="utf-8"))
    saved["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    saved["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "!",
    }
    (model_dir / "tokenizer.json").write_text(json.dumps(saved), encoding="utf-8")
    text = "What is the colour of the square in this picture?"
    assert load_tokenizer(model_dir).encode(text) == TINY.encode(text)


def test_threads_share_one_tokenizer() -> None:
    texts = [f"The square number {number} is {colour}." for number, colour in enumerate(PALETTE)]
    expected = [TINY.encode(text) for text in texts]
    matches: list[bool] = []

    def encode_all(tokenizer: FastTokenizer) -> None:
        for _ in range(200):
            found = [tokenizer(text, return_offsets_mapping=True)["input_ids"] for text in texts]
            matches.append(found == expected and [tokenizer.encode(text) for text in texts] == expected)

    threads = [threading.Thread(target=encode_all, args=(TINY,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert matches == [True] * 800


@pytest.mark.parametrize("name", ["nowhere", "nowhere/tokenizer.json"])
def test_the_error_of_a_missing_path_names_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(TokenizerError, match=r"nowhere.*does not exist"):
        load_tokenizer(tmp_path / name)


def test_the_error_of_a_directory_without_a_tokenizer_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json does not exist"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("tokenizer.json", "{", "is not a tokenizer"),
        ("tokenizer.json", '{"version": "1.0"}', "is not a tokenizer"),
        ("tokenizer_config.json", "{", "is not JSON"),
        ("tokenizer_config.json", "[]", "expected an object"),
        ("tokenizer_config.json", '{"eos_token": "<|missing|>"}', "no token '<.missing.>'"),
    ],
)
def test_the_error_of_a_broken_file_names_it(model_dir: Path, file: str, text: str, complaint: str) -> None:
    (model_dir / file).write_text(text)
    with pytest.raises(TokenizerError, match=complaint) as caught:
        load_tokenizer(model_dir)
    assert str(model_dir) in str(caught.value)
