"""The tiny checkpoints: templates write what the renderers write, and networks load and answer."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from renderers_adapter.adapter import RendererAdapter
from renderers_adapter.tokens import concat_ids
from rollout.serving.vllm import SHIM_DIRECTORY

VENV = os.environ.get("ROLLOUT_VLLM_VENV")

ASK = """
import json, sys
from transformers import AutoTokenizer
directory, conversation = sys.argv[1:]
asked = json.loads(conversation)
tokenizer = AutoTokenizer.from_pretrained(directory)
wanted = {"tools": asked["tools"], "add_generation_prompt": True, "tokenize": False}
text = tokenizer.apply_chat_template(asked["messages"], **wanted)
ids = tokenizer.encode(text, add_special_tokens=False)
said = None
if asked["speak"]:
    import torch
    from transformers import AutoModelForCausalLM
    network = AutoModelForCausalLM.from_pretrained(directory)
    said = network.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)[0, len(ids):].tolist()
print(json.dumps({"ids": ids, "said": said}))
"""

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"x": 1, "y": [2, 3]}}}
PLAIN = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two.", "reasoning_content": "It is not three."},
    {"role": "user", "content": "Three?"},
]
WITH_TOOLS = [
    {"role": "user", "content": "Add."},
    {"role": "assistant", "content": "So be it.", "tool_calls": [CALL]},
    {"role": "tool", "content": "6", "tool_call_id": "1"},
]


def run_transformers(directory: Path, messages: list[Any], tools: list[Any] | None, *, speak: bool) -> dict[str, Any]:
    """Render a conversation with transformers and, if `speak`, sample four tokens."""
    asked = json.dumps({"messages": messages, "tools": tools, "speak": speak})
    command = [f"{VENV}/bin/python", "-c", ASK, str(directory), asked]
    environment = {**os.environ, "PYTHONPATH": str(SHIM_DIRECTORY), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("family", "renderer", "messages", "tools"),
    [
        ("text", "qwen3", PLAIN, None),
        ("text", "qwen3", WITH_TOOLS, TOOLS),
        ("qwen3-vl", "qwen3-vl", WITH_TOOLS, TOOLS),
    ],
)
def test_a_template_writes_what_its_renderer_writes(
    checkpoints: Callable[[str], Path], family: str, renderer: str, messages: list[Any], tools: list[Any] | None
) -> None:
    directory = checkpoints(family)
    rendered = RendererAdapter.open(directory, renderer).render(messages, tools)
    ours = concat_ids(*(segment.ids for segment in rendered.segments), rendered.generation_prompt)
    assert run_transformers(directory, messages, tools, speak=False)["ids"] == ours.tolist()


def test_a_text_model_gives_the_same_answer_each_time(checkpoints: Callable[[str], Path]) -> None:
    generated = run_transformers(checkpoints("text"), PLAIN, None, speak=True)["said"]
    assert len(generated) == 4
    assert generated == run_transformers(checkpoints("text"), PLAIN, None, speak=True)["said"]
