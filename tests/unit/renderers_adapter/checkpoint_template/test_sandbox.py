"""The sandbox of chat templates: what Jinja's own sandbox refuses stays refused, also when it is read again."""

from collections import deque
from typing import Any

import pytest
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from renderers_adapter.checkpoint_template.sandbox import TemplateSandbox, TextWatch

UNSAFE = [
    "{{ value.__class__.__mro__ }}",
    "{{ value['__class__'].__name__ }}",
    "{{ value|attr('__class__') ~ value.__class__.__base__ }}",
    "{{ value.clear() }}",
    "{{ value.append(1) }}",
    "{{ value.update(a=1) }}",
    "{{ value['pop']() }}",
    "{{ value.sort() }}",
    "{{ range.__call__.__self__ }}",
    "{% macro said() %}{% endmacro %}{{ said._func.__globals__ }}",
    "{% for item in value %}{{ loop._iterator.gi_frame }}{% endfor %}",
    "{% set ns = namespace(a=1) %}{{ ns.__init__.__globals__ }}",
    "{{ '{0.__class__}'.format(value) }}",
    "{{ '{a.__class__}'.format_map({'a': value}) }}",
    "{% set ns = namespace(write='{0.__class__}'.format) %}{{ ns.write(value) }}",
    "{% for write in ['{0.__class__}'.format] %}{{ loop.previtem }}{{ write(value) }}{% endfor %}",
]
SAFE = [
    "{{ value.role }}{{ value.missing }}{{ value.missing is defined }}",
    "{{ value.items }}",
    "{{ value.keys()|list if value is mapping }}",
    "{% for item in value %}{{ loop.index0 }}{{ loop.last }}{{ loop.previtem }}{{ loop.nothing }}{% endfor %}",
    "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}{{ ns.b }}",
    "{{ 'a text'.upper() }}{{ 'a text'.nothing }}{{ '{}'.format(1) }}{{ value.count }}",
]
VALUES = [
    {"role": "user", "content": "a question"},
    {"items": 1, "__class__": 2, "clear": 3, "_own": 4},
    [1, 2],
    (1, 2),
    "a text",
    {1, 2},
    deque([1]),
    7,
    None,
]


class OwnDict(dict[str, Any]):
    """A dict with an attribute, which comes before a key of the same name."""

    role = "from the attribute"


def outcome(environment: ImmutableSandboxedEnvironment, source: str, value: Any) -> str:
    """Return the text that a template writes, or the error that it raises."""
    try:
        return environment.from_string(source).render(value=value)
    except Exception as error:  # noqa: BLE001 - errors are compared, too
        return f"{type(error).__name__}: {error}"


def without_addresses(text: str) -> str:
    """Return a text without what follows ` at 0x`, which differs from run to run."""
    return " ".join(word for word in text.split() if not word.startswith("0x"))


@pytest.mark.parametrize("source", [*UNSAFE, *SAFE])
def test_a_template_writes_what_it_writes_in_jinjas_sandbox(source: str) -> None:
    ours, theirs = TemplateSandbox(TextWatch()), ImmutableSandboxedEnvironment()
    for value in (*VALUES, OwnDict(role="from the key"), *VALUES):  # twice, so that answers are remembered
        expected = outcome(theirs, source, value)
        assert without_addresses(outcome(ours, source, value)) == without_addresses(expected), value


@pytest.mark.parametrize("source", ["{{ value.clear() }}", "{{ value.__class__.__mro__ }}", "{{ value.pop('a') }}"])
def test_an_unsafe_attribute_is_refused_each_time(source: str) -> None:
    template = TemplateSandbox(TextWatch()).from_string(source)
    for _ in range(3):
        with pytest.raises(SecurityError):
            template.render(value={"a": 1})


def test_a_method_that_is_safe_for_one_type_stays_unsafe_for_another() -> None:
    environment = TemplateSandbox(TextWatch())
    assert environment.from_string("{{ value.index(1) }}").render(value=(1, 2)) == "0"
    with pytest.raises(SecurityError):
        environment.from_string("{{ value.insert(0, 1) }}").render(value=[1])


def test_the_attribute_of_a_subclass_comes_before_its_key() -> None:
    template = TemplateSandbox(TextWatch()).from_string("{{ value.role }}")
    assert template.render(value={"role": "from the key"}) == "from the key"
    assert template.render(value=OwnDict(role="from the key")) == "from the attribute"


KEEPING = [
    "{{ value.text ~ value.text + value.text }}",
    "{{ value.text|trim }}{{ value.text.strip('\\n') }}{{ value.text.startswith('a') }}{{ value.text|default('') }}",
    "{% for part in value.parts[1:] %}{{ part }}{% endfor %}{{ value.parts[0] }}{{ value.parts|join(', ') }}",
    "{{ value|tojson }}{{ value.text|length }}{{ value.role|upper }}{{ 'x' in value.text }}{{ 7 % 2 }}{{ 7 * 2 }}",
]
CHANGING = [
    "{{ value.text|lower }}",
    "{{ value.text.upper() }}",
    "{{ value.text|replace('a', 'b') }}",
    "{{ value.parts|map('lower')|list }}",
    "{{ value.text[1:] }}",
    "{{ value.text[0] }}",
    "{{ value.text|trim('a') }}",
    "{{ value.text.strip('a') }}",
    "{% for c in value.text %}{% endfor %}",
    "{% set a, b, c = value.text[:3]|list %}",
    "{{ '%s' % value.text }}",
    "{{ range(value.text|length, *value.word) }}",
]


@pytest.mark.parametrize(("sources", "changes"), [(KEEPING, False), (CHANGING, True)], ids=["keeping", "changing"])
def test_a_change_of_a_text_is_noticed(sources: list[str], changes: bool) -> None:
    for source in sources:
        watch = TextWatch()
        value = {"text": "a text", "parts": ["a", "b"], "role": "user", "word": ""}
        TemplateSandbox(watch).from_string(source).render(value=value)
        assert watch.has_changed is changes, source


@pytest.mark.parametrize("source", ["{{ 'ab' * 10000000 }}", "{{ 10000000 * value }}", "{{ [1] * 10000000 }}"])
def test_a_long_repetition_is_refused(source: str) -> None:
    with pytest.raises(OverflowError, match="too big"):
        TemplateSandbox(TextWatch()).from_string(source).render(value="ab")
