"""The canonical form of messages: which ones are the same, and which ones are refused."""

from typing import Any
from uuid import UUID

import pytest

from rollout.environments.base import Reply
from rollout.records.messages import (
    CanonicalMessage,
    CanonicalMessageCache,
    FinishReason,
    MessageError,
    canonicalise,
    digest_tools,
    require_conversation,
)


def test_an_image_is_named_by_its_hash_not_by_its_url() -> None:
    def asked(url: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"text": "Colour?"}]}

    (from_file,) = canonicalise([asked("file:///a.png")], [(0, 0, "aa")])
    (from_data_uri,) = canonicalise([asked("data:image/png;base64,AAAA")], [(0, 0, "aa")])
    (another_image,) = canonicalise([asked("file:///a.png")], [(0, 0, "bb")])
    assert from_file.digest == from_data_uri.digest != another_image.digest
    assert from_file.image_hashes == ("aa",)
    assert from_file.message["content"] == [{"type": "image", "hash": "aa"}, {"type": "text", "text": "Colour?"}]


def test_keys_that_no_template_reads_do_not_change_the_digest() -> None:
    plain, annotated = canonicalise(
        [{"role": "user", "content": "a"}, {"role": "user", "content": "a", "timestamp": 3, "name": None}], ()
    )
    assert plain.digest == annotated.digest


def test_tools_in_another_order_are_other_tools() -> None:
    assert digest_tools(None) == digest_tools([]) == b""
    assert digest_tools([{"name": "a"}, {"name": "b"}]) != digest_tools([{"name": "b"}, {"name": "a"}])


@pytest.mark.parametrize(
    ("message", "expected_text"),
    [
        ("hello", r"messages\[0\] is a str"),
        ({"role": "robot", "content": "a"}, r"messages\[0\] has the role 'robot'"),
        ({"role": "user", "content": 3}, r"messages\[0\].content is an int"),
        ({"content": "a"}, r"messages\[0\] has no role; expected one of system, user, assistant, tool"),
        ({"role": "user"}, r"messages\[0\] has no content; expected {"),
        ({"role": "user", "content": [5]}, r"content\[0\] is neither text nor an image, but an int; write {"),
        ({"role": "user", "content": [{"type": "audio"}]}, r"messages\[0\].content\[0\] is neither text nor an image"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{1, 2}]},
            r"messages\[0\] contains a value that JSON cannot write",
        ),
        ({"role": "tool", "content": "a", "tool_call_id": UUID(int=1)}, r"messages\[0\].tool_call_id is a UUID"),
        ({"role": "tool", "content": "a", "name": 3}, r"messages\[0\].name is an int"),
        (
            {"role": "assistant", "content": "a", "reasoning_content": ["b"]},
            r"messages\[0\].reasoning_content is a list",
        ),
    ],
)
def test_a_message_that_no_template_can_render_is_refused_by_index(message: Any, expected_text: str) -> None:
    with pytest.raises(MessageError, match=expected_text):
        canonicalise([message], ())


@pytest.mark.parametrize("tools", [[{1, 2}], [{"name": "look", "limit": 1 << 64}], 7])
def test_tools_that_are_not_json_are_refused(tools: Any) -> None:
    with pytest.raises(MessageError, match="the tools cannot be written as JSON"):
        digest_tools(tools)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ("hello", "chat() got a str; expected a list of messages: ["),
        ({"role": "user", "content": "hello"}, "chat() got a dict; expected a list of messages: ["),
        (None, "chat() got None; expected a list of messages: ["),
        ([], "chat() got an empty list; expected at least one message, such as {"),
        ([{"role": "assistant", "content": "hello"}], "must end with a message to the model."),
    ],
)
def test_the_error_of_an_invalid_conversation_has_the_correct_form(messages: object, problem: str) -> None:
    with pytest.raises(MessageError) as refused:
        require_conversation(messages)
    assert problem in str(refused.value)


def test_a_reply_instead_of_its_message_is_refused() -> None:
    reply = Reply({"role": "assistant", "content": "heads"}, "heads", FinishReason.STOP)
    with pytest.raises(MessageError, match=r"^messages\[0\] is a Reply; append its \.message instead\.$"):
        canonicalise([reply], ())


def test_a_later_change_to_a_call_does_not_change_the_canonical_message() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"n": 1}}}
    (said,) = canonicalise([{"role": "assistant", "content": "", "tool_calls": [call]}], ())
    call["function"]["arguments"]["n"] = 2  # type: ignore[index]
    assert said.message["tool_calls"][0]["function"]["arguments"] == {"n": 1}


def test_all_forms_of_an_empty_content_have_the_same_digest() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"n": 1}}}
    said = [{"role": "assistant", "content": content, "tool_calls": [call]} for content in ("", None)]
    said.append({"role": "assistant", "tool_calls": [call]})
    as_text = {**call, "function": {"name": "look", "arguments": '{ "n": 1 }'}}
    said.append({"role": "assistant", "tool_calls": [as_text]})
    assert len({message.digest for message in canonicalise(said, ())}) == 1


def test_texts_and_images_nested_in_a_tool_result_keep_their_order() -> None:
    image = {"type": "image_url", "image_url": {"url": "file:///a.png"}}
    nested = {"type": "tool_result", "content": ["before", image, {"type": "text", "text": "after"}]}
    (message,) = canonicalise([{"role": "tool", "content": [nested, image]}], [(0, 0, "aa"), (0, 1, "bb")])
    assert [part.get("text") or part["hash"] for part in message.message["content"]] == ["before", "aa", "after", "bb"]
    assert message.image_hashes == ("aa", "bb")


def fill_cache(*messages: dict[str, Any]) -> tuple[CanonicalMessageCache, list[CanonicalMessage]]:
    cache, forms = CanonicalMessageCache(), canonicalise(messages, ())
    for message, form in zip(messages, forms, strict=True):
        cache.add(message, form)
    return cache, forms


def test_messages_are_cached_while_they_are_the_same_objects_and_unchanged() -> None:
    first, second = {"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "user", "content": "b"}
    cache, forms = fill_cache(first, second)
    assert cache.known_prefix([first, second, {"role": "user", "content": "c"}]) == forms
    assert cache.known_prefix([dict(first), second]) == []
    first["content"][0]["text"] = "changed"  # type: ignore[index]
    assert cache.known_prefix([first, second]) == []
    assert cache.known_prefix([second]) == forms[1:]


def test_a_message_whose_changes_cannot_be_noticed_is_not_cached() -> None:
    message = {"role": "user", "content": [type("Part", (), {"type": "text", "text": "a"})()]}
    cache, _ = fill_cache(message)
    assert cache.known_prefix([message]) == []


def test_the_cache_is_bounded() -> None:
    messages = [{"role": "user", "content": str(number)} for number in range(CanonicalMessageCache._MAX_ENTRIES + 1)]
    cache, _ = fill_cache(*messages)
    assert cache.known_prefix(messages[:1]) == []
    assert len(cache.known_prefix(messages[-1:])) == 1
