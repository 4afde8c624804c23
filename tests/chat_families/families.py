"""The families that are rendered with their own chat templates, and tiny checkpoints of them.

directory = write_checkpoint(FAMILIES["llama-3"], path)                      # all files but the network's
python -m tests.chat_families.networks DIRECTORY llama-3                     # the network, with transformers
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from renderers_adapter.options import RendererOptions
from rollout.config.model_directory import BUILTIN_MODELS
from tests.chat_families.tokenizers import (
    ControlToken,
    byte_level,
    byte_level_with_digits,
    metaspace,
    prepending,
    splitting,
)

CONTEXT_LENGTH = 32768
DATE = "26 Jul 2024"
"""The date in the prompts of templates that write one."""
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class ChatFamily:
    """A family of text models, as far as its prompts need it.

    Attributes:
        name: the name of the family, also in docs/models.md.
        template: the file of the chat template.
        tokenizer: makes the content of tokenizer.json.
        tokenizer_class: the class of the tokenizer in transformers.
        special_tokens: the special tokens that tokenizer_config.json names.
        end_tokens: the tokens that end an answer; the first is the one with which the template closes it.
        network: the names of the classes of the configuration and of the network in transformers.
        network_settings: settings of the configuration that only this family has.
        options: the options of the renderer.
        takes_tools: whether the template writes tools, calls and results.
    """

    name: str
    template: Path
    tokenizer: Callable[[], Mapping[str, Any]]
    tokenizer_class: str
    special_tokens: Mapping[str, str]
    end_tokens: tuple[str, ...]
    network: tuple[str, str]
    network_settings: Mapping[str, Any] = field(default_factory=dict)
    options: RendererOptions = field(default_factory=RendererOptions)
    takes_tools: bool = False


def write_checkpoint(family: ChatFamily, directory: Path) -> Path:
    """Write the files of a tiny checkpoint that a worker reads, and return its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = family.tokenizer()
    ids = token_ids(tokenizer)
    special = family.special_tokens
    files: Mapping[str, Mapping[str, Any]] = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "tokenizer_class": family.tokenizer_class,
            "model_max_length": CONTEXT_LENGTH,
            "clean_up_tokenization_spaces": False,
            **special,
        },
        "generation_config.json": {
            "eos_token_id": [ids[token] for token in family.end_tokens],
            **{f"{name}_id": ids[token] for name, token in special.items() if name in ("bos_token", "pad_token")},
        },
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), "utf-8")
    shutil.copyfile(family.template, directory / "chat_template.jinja")
    return directory


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Return the id of each token of a tokenizer.json."""
    return {**tokenizer["model"]["vocab"], **{token["content"]: token["id"] for token in tokenizer["added_tokens"]}}


def _shipped_tokenizer() -> Mapping[str, Any]:
    tokenizer: dict[str, Any] = json.loads((BUILTIN_MODELS["builtin:tiny"] / "tokenizer.json").read_text("utf-8"))
    return tokenizer


def _special(*texts: str) -> list[ControlToken]:
    return [ControlToken(text) for text in texts]


def _llama_3_tokenizer() -> Mapping[str, Any]:
    header = ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>")
    return byte_level(
        _special("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", *header),
        bos_token="<|begin_of_text|>",
    )


def _mistral_tokenizer() -> Mapping[str, Any]:
    layout = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
    results = ("[TOOL_RESULTS]", "[/TOOL_RESULTS]")
    return metaspace(_special("<unk>", "<s>", "</s>", *layout, *results), bos_token="<s>")


def _gemma_3_tokenizer() -> Mapping[str, Any]:
    first = _special("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    breaks = [ControlToken("\n" * count, special=False) for count in (2, 3, 4)]
    turns = _special("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>")
    return splitting([*first, *breaks, *turns], bos_token="<bos>")


def _phi_3_tokenizer() -> Mapping[str, Any]:
    roles = ("<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    layout = [ControlToken(text, rstrip=True) for text in roles]
    return prepending(
        [*_special("<unk>", "<s>"), ControlToken("</s>", rstrip=True), ControlToken("<|endoftext|>"), *layout]
    )


def _smollm3_tokenizer() -> Mapping[str, Any]:
    tags = ("<think>", "</think>", "<tool_response>", "</tool_response>", "<tool_call>", "</tool_call>")
    special = _special("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>")
    return byte_level([*special, *(ControlToken(tag, special=False) for tag in tags)], bos_token=None)


FAMILIES: Mapping[str, ChatFamily] = {
    family.name: family
    for family in (
        ChatFamily(
            "Llama 3.x",
            _TEMPLATES / "llama_3.jinja",
            _llama_3_tokenizer,
            "PreTrainedTokenizerFast",
            {
                "bos_token": "<|begin_of_text|>",
                "eos_token": "<|eot_id|>",
                "pad_token": "<|finetune_right_pad_id|>",
            },
            ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
            ("LlamaConfig", "LlamaForCausalLM"),
            options=RendererOptions({"date_string": DATE}, tool_parser="llama-3"),
            takes_tools=True,
        ),
        ChatFamily(
            "Mistral",
            _TEMPLATES / "mistral.jinja",
            _mistral_tokenizer,
            "LlamaTokenizer",
            {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
            ("</s>",),
            ("MistralConfig", "MistralForCausalLM"),
            {"sliding_window": None},
            takes_tools=True,
        ),
        ChatFamily(
            "Qwen3",
            Path(__file__).parents[2] / "rollout" / "serving" / "tiny_model" / "templates" / "qwen3.jinja",
            _shipped_tokenizer,
            "Qwen2Tokenizer",
            {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
            ("<|im_end|>", "<|endoftext|>"),
            ("Qwen3Config", "Qwen3ForCausalLM"),
            options=RendererOptions(tool_parser="qwen3", reasoning_parser="think"),
            takes_tools=True,
        ),
        ChatFamily(
            "Gemma 3",
            _TEMPLATES / "gemma_3.jinja",
            _gemma_3_tokenizer,
            "GemmaTokenizer",
            {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
            ("<end_of_turn>", "<eos>"),
            ("Gemma3TextConfig", "Gemma3ForCausalLM"),
            {"query_pre_attn_scalar": 32, "sliding_window": 64},
        ),
        ChatFamily(
            "Phi-3",
            _TEMPLATES / "phi_3.jinja",
            _phi_3_tokenizer,
            "LlamaTokenizer",
            {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"},
            ("<|end|>", "<|endoftext|>", "<|assistant|>"),
            ("Phi3Config", "Phi3ForCausalLM"),
        ),
        ChatFamily(
            "SmolLM2",
            _TEMPLATES / "smollm2.jinja",
            lambda: byte_level_with_digits(_special("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>")),
            "GPT2Tokenizer",
            {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"},
            ("<|im_end|>",),
            ("LlamaConfig", "LlamaForCausalLM"),
        ),
        ChatFamily(
            "SmolLM3",
            _TEMPLATES / "smollm3.jinja",
            _smollm3_tokenizer,
            "PreTrainedTokenizerFast",
            {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
            ("<|im_end|>",),
            ("SmolLM3Config", "SmolLM3ForCausalLM"),
            options=RendererOptions(
                {"date_string": DATE, "enable_thinking": False}, tool_parser="qwen3", reasoning_parser="think"
            ),
            takes_tools=True,
        ),
    )
}
