"""The canonical form: what makes two messages the same, and what is refused."""

from typing import Any

import pytest

from rollout.messages import MessageError, canonicalise, tools_identity


def test_an_image_is_named_by_its_hash_not_by_its_url() -> None:
    def asked(url: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"text": "Colour?"}]}

    (one,) = canonicalise([asked("file:///a.png")], [(0, 0, "aa")])
    (two,) = canonicalise([asked("data:image/png;base64,AAAA")], [(0, 0, "aa")])
    (other,) = canonicalise([asked("file:///a.png")], [(0, 0, "bb")])
    assert one.identity == two.identity != other.identity
    assert one.images == ("aa",)
    assert one.message["content"] == [{"type": "image", "hash": "aa"}, {"type": "text", "text": "Colour?"}]


def test_keys_that_no_template_reads_do_not_matter() -> None:
    plain, annotated = canonicalise(
        [{"role": "user", "content": "a"}, {"role": "user", "content": "a", "timestamp": 3, "name": None}], ()
    )
    assert plain.identity == annotated.identity


def test_tools_in_another_order_are_other_tools() -> None:
    assert tools_identity(None) == tools_identity([]) == b""
    assert tools_identity([{"name": "a"}, {"name": "b"}]) != tools_identity([{"name": "b"}, {"name": "a"}])


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("hello", r"messages\[0\] is a str"),
        ({"role": "robot", "content": "a"}, r"messages\[0\] has the role 'robot'"),
        ({"role": "user", "content": 3}, r"messages\[0\].content is a int"),
        ({"role": "user", "content": [{"type": "audio"}]}, r"messages\[0\].content\[0\] is neither text nor an image"),
        ({"role": "assistant", "content": "", "tool_calls": [{1, 2}]}, r"messages\[0\] holds a value that is not JSON"),
    ],
)
def test_what_no_template_can_render_is_refused_by_index(message: Any, told: str) -> None:
    with pytest.raises(MessageError, match=told):
        canonicalise([message], ())
