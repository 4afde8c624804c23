"""Templates and arguments that cannot be used are named when the model is opened."""

import pytest

from renderers_adapter.checkpoint_template.chat_template import ChatTemplate, ChatTemplateError

DEEP = 25


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% break %}", "'break' outside loop"),
        ("{% for a in [1] %}" * DEEP + "{% endfor %}" * DEEP, "too many statically nested blocks"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion"),
    ],
    ids=["break", "loops", "brackets"],
)
def test_a_template_that_python_cannot_compile_is_named(source: str, reason: str) -> None:
    with pytest.raises(ChatTemplateError, match=f"the chat template is not a chat template: .*{reason}"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "name",
    [
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "bos_token",
        "strftime_now",
        "raise_exception",
        "self",
    ],
)
def test_an_argument_that_would_replace_what_a_template_gets_is_refused(name: str) -> None:
    with pytest.raises(ChatTemplateError, match=rf"model\.template\.{name} cannot be set"):
        ChatTemplate("").check_arguments({"style": 1, name: "x"})


def test_an_argument_that_a_template_never_reads_is_refused() -> None:
    template = ChatTemplate("{% if thinks is not defined %}{% set thinks = 1 %}{% endif %}{{ messages }}{{ style }}")
    template.check_arguments({"thinks": False, "style": "short"})
    with pytest.raises(ChatTemplateError, match=r"model\.template\.think is never read by .* reads style, thinks\."):
        template.check_arguments({"think": False})


def test_an_argument_that_only_the_template_for_tools_reads_is_accepted() -> None:
    ChatTemplate("", tools_source="{{ style }}").check_arguments({"style": "short"})
