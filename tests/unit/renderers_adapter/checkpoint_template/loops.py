"""Templates that loop over the parts of a content, and templates that only look so."""

from collections.abc import Mapping

_IN_LOOP = "{{% for m in messages %}}{}{{% endfor %}}"
_PARTS = "{% for p in m.content %}{{ p.text }}{% endfor %}"
_MACRO = "{% macro write(role, value) %}{% for p in value %}{{ p.text }}{% endfor %}{% endmacro %}"


def _in_loop(source: str) -> str:
    return _IN_LOOP.format(source)


TAKES_PARTS: Mapping[str, str] = {
    "a loop over the attribute": _in_loop(_PARTS),
    "a loop over the item": _in_loop("{% for p in m['content'] %}{{ p['text'] }}{% endfor %}"),
    "a loop in a condition": _in_loop("{% if m.content is string %}{{ m.content }}{% else %}" + _PARTS + "{% endif %}"),
    "an alias of the messages": "{% set rest = messages %}{% for m in rest %}" + _PARTS + "{% endfor %}",
    "an alias of an alias": "{% set a = messages %}{% set b = a %}{% for m in b %}" + _PARTS + "{% endfor %}",
    "an alias that is a slice": "{% set rest = messages[1:] %}{% for m in rest %}" + _PARTS + "{% endfor %}",
    "an alias of itself": "{% set messages = messages[1:] %}" + _in_loop(_PARTS),
    "an alias in a condition": "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% else %}"
    "{% set rest = messages %}{% endif %}{% for m in rest %}" + _PARTS + "{% endfor %}",
    "a slice of the messages": "{% for m in messages[1:] %}" + _PARTS + "{% endfor %}",
    "messages in reverse order": "{% for m in messages[::-1] %}" + _PARTS + "{% endfor %}",
    "a filter of the messages": "{% for m in messages|list %}" + _PARTS + "{% endfor %}",
    "a filter with an argument": "{% for m in messages|selectattr('content') %}" + _PARTS + "{% endfor %}",
    "a filter of the content": _in_loop("{% for p in m.content|list %}{{ p.text }}{% endfor %}"),
    "a filter and a condition": _in_loop("{% for p in m.content|list if p.text %}{{ p.text }}{% endfor %}"),
    "a slice of the content": _in_loop("{% for p in m.content[1:] %}{{ p.text }}{% endfor %}"),
    "a slice and a filter": _in_loop("{% for p in m['content'][1:]|list %}{{ p.text }}{% endfor %}"),
    "a macro's parameter by position": _MACRO + _in_loop("{{ write(m.role, m.content) }}"),
    "a macro's parameter by name": _MACRO + _in_loop("{{ write(m.role, value=m['content']) }}"),
    "a filtered macro's parameter": _MACRO + _in_loop("{{ write(m.role, m.content|list) }}"),
    "a macro's parameter of the name content": "{% macro write(content) %}{% for p in content %}{{ p.text }}"
    "{% endfor %}{% endmacro %}" + _in_loop("{{ write(m.content) }}"),
    "a macro that is called first": _in_loop("{{ write(m.role, m.content) }}") + _MACRO,
    "a call in a filter": _MACRO + _in_loop("{{ write(m.role, m.content)|trim }}"),
    "a message in a macro": "{% macro all() %}" + _in_loop(_PARTS) + "{% endmacro %}{{ all() }}",
    "a variable of the name content": _in_loop(
        "{% set content = m.content %}{% for p in content %}{{ p.text }}{% endfor %}"
    ),
    "a generation block": _in_loop("{% generation %}" + _PARTS + "{% endgeneration %}"),
}
"""Templates that get each content as a list of parts, by what they do."""

TAKES_TEXT: Mapping[str, str] = {
    "no loop": "{{ messages[0].content }}",
    "no loop over the content": _in_loop("{{ m.content }}"),
    "a loop over the calls": _in_loop("{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.id }}{% endfor %}"),
    "a loop over a key that is no text": _in_loop("{% for p in m[content] %}{{ p.text }}{% endfor %}"),
    "a loop over something else's content": "{% for t in tools or [] %}{% for p in t.content %}{{ p }}{% endfor %}"
    "{% endfor %}" + _in_loop("{{ m.content }}"),
    "a loop over the first message's content": "{% for p in messages[0].content %}{{ p.text }}{% endfor %}",
    "a loop over a method's result": _in_loop("{% for word in m.content.split(' ') %}{{ word }}{% endfor %}"),
    "a loop over a variable of another name": _in_loop(
        "{% set value = m.content %}{% for p in value %}{{ p.text }}{% endfor %}"
    ),
    "a loop over a sum": _in_loop("{% for p in m.content + [] %}{{ p.text }}{% endfor %}"),
    "a loop over either of two": _in_loop("{% for p in m.content or [] %}{{ p.text }}{% endfor %}"),
    "a loop over a range": "{% for i in range(messages|length) %}{% set m = messages[i] %}" + _PARTS + "{% endfor %}",
    "a namespace": "{% set ns = namespace(all=messages) %}{% for m in ns.all %}" + _PARTS + "{% endfor %}",
    "a macro that gets the role": _MACRO + _in_loop("{{ write(m.content, m.role) }}"),
    "a macro that nobody calls": _MACRO + _in_loop("{{ m.content }}"),
    "a macro that nobody calls with a parameter content": "{% macro write(content) %}{% for p in content %}{{ p }}"
    "{% endfor %}{% endmacro %}" + _in_loop("{{ m.content }}"),
    "a macro that gets a text of another name": "{% macro write(content) %}{% for p in content %}{{ p }}"
    "{% endfor %}{% endmacro %}" + _in_loop("{{ write(m.role) }}"),
    "a macro that gets a message": "{% macro write(m) %}" + _PARTS + "{% endmacro %}{% for one in messages %}"
    "{{ write(one) }}{% endfor %}",
}
"""Templates that get each content as a text, by what they do."""
