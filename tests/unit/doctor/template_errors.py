"""Settings of chat templates and parsers that are wrong, each with the error."""

TEMPLATE_ERRORS = [
    (
        ["model.renderer=template", "model.tool_parser=qwen"],
        r"model\.tool_parser 'qwen' is not known\. Did you mean 'qwen3",
    ),
    (
        ["model.renderer=template", "model.tool_parser=deepseek-v3"],
        r"model\.tool_parser 'deepseek-v3' needs the token '<｜tool▁calls▁begin｜>'",
    ),
    (
        ["model.renderer=template", "model.reasoning_parser=deepthink"],
        r"model\.reasoning_parser 'deepthink' is not known\.",
    ),
    (
        ["model.renderer=qwen3-vl", "model.tool_parser=qwen3"],
        r"model\.tool_parser is only for the renderer template; .* Remove model\.tool_parser\.",
    ),
    (
        ["model.renderer=template", "model.template.file=/none.jinja"],
        r"model\.template\.file: /none\.jinja is not a file",
    ),
    (
        ["model.renderer=qwen3-vl", "model.template.file=/none.jinja"],
        r"model\.template\.file is only for the renderer template; .* or set model\.renderer to template\.",
    ),
    (
        ["model.renderer=template", "model.template.messages=x"],
        r"model\.template\.messages cannot be set, because rollout itself gives it",
    ),
]
"""Each entry: what is set, and a pattern of the error."""
