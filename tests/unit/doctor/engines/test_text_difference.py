"""The first difference between two prompts, as text."""

from renderers_adapter.tokenizer import load_tokenizer
from rollout.config.model_directory import BUILTIN_MODELS
from rollout.doctor.engines.text_difference import describe_difference

_TOKENIZER = load_tokenizer(BUILTIN_MODELS["builtin:tiny"])
_PAD_ID = _TOKENIZER.token_id("<|image_pad|>")


def describe(ours: str, server: str) -> list[str]:
    lines = describe_difference(_TOKENIZER.encode(ours), _TOKENIZER.encode(server), _TOKENIZER, _PAD_ID)
    return lines.splitlines()


def test_the_differing_part_is_marked_on_both_sides() -> None:
    assert describe("<|im_start|>user\nA\tb<|im_end|>\nend", "<|im_start|>user\nXY<|im_end|>\nend") == [
        "after:   <|im_start|>user\\n",
        "ours:    «A\\tb»<|im_end|>\\nend",
        "server:  «XY»<|im_end|>\\nend",
    ]


def test_a_part_that_only_one_side_has_is_marked_as_nothing_on_the_other() -> None:
    assert describe("a<|im_end|>\n<|im_start|>", "a<|im_end|>\n<|im_start|><|im_end|>")[1:] == [
        "ours:    «»",
        "server:  «<|im_end|>»",
    ]


def test_long_surroundings_are_cut() -> None:
    after, ours, server = describe(
        "before " * 30 + "<|im_end|>" + "1" * 300, "before " * 30 + "<|im_start|>" + "2" * 300
    )
    assert after.endswith("before before ")
    assert all(len(line) < 160 for line in (after, ours, server))


def test_many_pad_tokens_are_shown_as_a_number() -> None:
    after, ours, server = describe("<|image_pad|>" * 70 + "x", "<|image_pad|>" * 72 + "x")
    assert after == "after:   <|image_pad|>×70"
    assert (ours, server) == ("ours:    «»x", "server:  «<|image_pad|>×2»x")


def test_characters_are_not_cut_in_two() -> None:
    after, ours, server = describe("a 日", "a 月")
    assert "\ufffd" not in after + ours + server


def test_a_difference_at_the_beginning_has_nothing_before_it() -> None:
    assert describe("a", "b")[0] == "after:   (the beginning)"
