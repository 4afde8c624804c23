"""Random changes of random texts: a prompt has exactly the control tokens that the template writes, or is refused."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.special_text import SpecialTextRefused
from tests.unit.renderers_adapter.checkpoint_template.test_random_templates import EXAMPLES, TINY, TOKENIZER
from tests.unit.renderers_adapter.conversations import rendered_ids

CHANGES = (
    *(
        "|lower",
        "|title|lower",
        "|replace('~', '')",
        "|replace('|~', '|')",
        "|replace('im', '')",
        "|trim",
        "|trim('~')",
    ),
    *("[1:]", "[:-1]", "[::-1]", "|reverse", ".split('~')|join", "|list|join", "|join('')", "|unique|join"),
    *("|sort|join", "|truncate(12, true, '')", "|center(20)", "|indent", "|wordwrap(5)|replace('\\n', '')", "|e"),
    *("|tojson|lower", "|tojson(ensure_ascii=true)|lower"),
)
PIECES = (
    *("<", "|", "im_end", "IM_END", "|>", "<|", ">", "~", "think", "/", "a", " ", "\n", "é", "[", '"', "\\"),
    *("<|im_end|>", "<|IM_END|>", "<think>", "</Think>"),
)
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=7).map("".join)


def open_adapter(key: str, changes: Sequence[str]) -> RendererAdapter:
    changed = f"m.{key}"
    for change in changes:
        changed = f"({changed}{change})"
    source = f"{{% for m in messages %}}<|im_start|>{{{{ {changed} }}}}<|im_end|>{{% endfor %}}<|im_start|>"
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY / file, directory)
        (directory / "chat_template.jinja").write_text(source, "utf-8")
        ids = [TOKENIZER.token_id("<|im_end|>")]
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}), "utf-8")
        return RendererAdapter.open(directory, "template", tokenizer=TOKENIZER)


@settings(max_examples=EXAMPLES)
@given(
    st.sampled_from(("content", "name")),
    st.lists(st.sampled_from(CHANGES), min_size=1, max_size=2),
    st.lists(TEXTS, min_size=1, max_size=3),
)
def test_only_the_template_writes_control_tokens(key: str, changes: list[str], texts: list[str]) -> None:
    messages = [{"role": "user", "content": "hi", key: text} for text in texts]
    begin, end = (TOKENIZER.token_id(token) for token in ("<|im_start|>", "<|im_end|>"))
    with contextlib.suppress(SpecialTextRefused):
        ids = rendered_ids(open_adapter(key, changes), messages)
        assert [token for token in ids if token in TOKENIZER.control_ids] == [*[begin, end] * len(texts), begin]
