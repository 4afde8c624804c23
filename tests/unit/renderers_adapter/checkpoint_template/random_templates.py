"""Random chat templates. Each also exists with sentinels, which say where an answer ends, so the truth is known."""

from dataclasses import dataclass

from hypothesis import strategies as st

REASONING, BODY_END, TOKEN_END = "\ue001", "\ue002", "\ue003"
"""Sentinels: before a written reasoning, after the answer itself, and after the token that closes it."""
SENTINELS = (REASONING, BODY_END, TOKEN_END)

_NUMBERS = {"": "", "start": " {{ loop.index }}", "end": " {{ loop.revindex }}", "all": " {{ loop.length }}"}
_KEPT = {"always": "true", "never": "false", "new": "loop.index0 > state.last_user"}
_CLOSINGS = {
    "usual": ("", "<|im_end|>"),
    "space": ("{{ '\\n' }}", "<|im_end|>"),
    "words": (" ({{ message.content.split()|length }} words)", "<|im_end|>"),
    "other": ("", "<|endoftext|>"),
    "two": ("", "<|im_end|><|endoftext|>"),
    "none": ("", ""),
}


@dataclass(frozen=True)
class Features:
    """What a template does."""

    trims: bool = False
    number: str = ""
    merges_system: str = ""
    reasoning: str = "always"
    generation: str = "<|im_start|>assistant\n"
    opening: str = "\n"
    closing: str = "usual"
    after: str = "\n"
    looks_back: bool = False
    alternates: bool = False
    groups_results: bool = False
    drops_empty: bool = False
    magic: str = ""

    def source(self, *, with_sentinels: bool = False) -> str:
        """Return the template, or the template with sentinels."""
        at, body_end, token_end = SENTINELS if with_sentinels else ("", "", "")
        content = "{{ message.content|trim }}" if self.trims else "{{ message.content }}"
        number = _NUMBERS[self.number]  # an answer has none, because its generation prompt has none
        header = "<|im_start|>{{ message.role }}"
        header += "{% if loop.index0 < state.last_user %} old{% endif %}" if self.looks_back else ""
        header += {
            "": "",
            "all": "{% if state.magic %} magic{% endif %}",
            "own": "{% if 'magic' in message.content %} magic{% endif %}",
        }[self.magic]
        closing, token = _CLOSINGS[self.closing]
        after = f"{{{{ {self.after!r} }}}}"
        parts = [
            "{% set state = namespace(last_user=-1, first_user=-1, magic=false, system='', previous='') %}",
            "{% for message in messages %}{% if message.role == 'user' %}{% set state.last_user = loop.index0 %}",
            "{% if state.first_user < 0 %}{% set state.first_user = loop.index0 %}{% endif %}{% endif %}",
            "{% if 'magic' in message.content %}{% set state.magic = true %}{% endif %}",
            "{% if message.role == 'user' and state.previous == 'user' %}{{ raise_exception('roles must alternate') }}"
            "{% endif %}"
            if self.alternates
            else "",
            "{% set state.previous = message.role %}",
            "{% if message.role == 'system' %}{% set state.system = message.content %}{% endif %}",
            "{% endfor %}{% if tools %}<|im_start|>tools {{ tools|tojson }}<|im_end|>{% endif %}",
            "{% for message in messages %}",
            "{% if message.role == 'system' %}{% continue %}{% endif %}" if self.merges_system else "",
            "{% if message.role == 'assistant' and not message.content and not message.tool_calls %}{% continue %}"
            "{% endif %}"
            if self.drops_empty
            else "",
            f"{{% if message.role == 'assistant' %}}{header}{{{{ {self.opening!r} }}}}",
            f"{{% if message.reasoning_content and {_KEPT[self.reasoning]} %}}<think>{{{{ '\\n' }}}}{at}",
            "{{ message.reasoning_content|trim }}{{ '\\n' }}</think>{{ '\\n\\n' }}{% endif %}",
            content,
            "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function|tojson }}</tool_call>{% endfor %}",
            f"{body_end}{closing}{token}{token_end}{after}",
            "{% elif message.role == 'tool' %}{% if not loop.previtem or loop.previtem.role != 'tool' %}"
            f"<|im_start|>user{{% endif %}}<result>{content}</result>"
            f"{{% if loop.last or loop.nextitem.role != 'tool' %}}<|im_end|>{after}{{% endif %}}"
            if self.groups_results
            else "",
            f"{{% else %}}{header}{number}{{{{ '\\n' }}}}",
            f"{{% if message.role == 'user' and loop.index0 == state.{self.merges_system}_user %}}"
            "{{ state.system }}"
            "{{ '\\n' }}{% endif %}"
            if self.merges_system
            else "",
            f"{content}<|im_end|>{after}{{% endif %}}{{% endfor %}}",
            f"{{% if add_generation_prompt %}}{{{{ {self.generation!r} }}}}{{% endif %}}",
        ]
        return "".join(parts)


HARMLESS = st.builds(
    Features,
    trims=st.booleans(),
    number=st.sampled_from(("", "start")),
    merges_system=st.sampled_from(("", "first")),
    groups_results=st.booleans(),
    after=st.sampled_from(("", "\n")),
    magic=st.just(""),
)
"""Templates that never write earlier text in another way."""

ANY = st.builds(
    Features,
    trims=st.booleans(),
    number=st.sampled_from(("", "", "", *_NUMBERS)),
    merges_system=st.sampled_from(("", "", "first", "last")),
    reasoning=st.sampled_from(("always", "always", *_KEPT)),
    generation=st.sampled_from(
        ("<|im_start|>assistant\n",) * 3 + ("<|im_start|>assistant", "<|im_start|>assistant\n<think>\n", "")
    ),
    opening=st.sampled_from(("\n", "\n", "\n", "", " ")),
    closing=st.sampled_from(("usual", "usual", "usual", *_CLOSINGS)),
    after=st.sampled_from(("", "\n", " \n")),
    looks_back=st.sampled_from((False, False, False, True)),
    alternates=st.booleans(),
    groups_results=st.booleans(),
    drops_empty=st.booleans(),
    magic=st.sampled_from(("", "", "all", "own")),
)
"""Templates of all kinds."""
