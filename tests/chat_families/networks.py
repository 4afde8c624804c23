"""Writes the network of a tiny checkpoint: `python -m tests.chat_families.networks DIRECTORY FAMILY`.

It needs torch and transformers, so it runs in the environment of vLLM.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

from tests.chat_families.families import CONTEXT_LENGTH, FAMILIES, ChatFamily, token_ids

_WEIGHT_SCALE = 6.0  # with the usual weights, answers hardly depend on the prompt


def write_network(family: ChatFamily, directory: Path) -> None:
    """Write config.json and random weights into the directory of a checkpoint."""
    ids = token_ids(json.loads((directory / "tokenizer.json").read_text("utf-8")))
    special = {name: ids[family.special_tokens[name]] for name in family.special_tokens if name in _NAMED_IDS}
    config_class, network_class = (getattr(transformers, name) for name in family.network)
    config = config_class(
        vocab_size=max(ids.values()) + 1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=False,
        **{"bos_token_id": None, "pad_token_id": None, **{_NAMED_IDS[name]: token for name, token in special.items()}},
        **family.network_settings,
    )
    torch.manual_seed(0)
    network = network_class(config).to(torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(_WEIGHT_SCALE)
    generation = (directory / "generation_config.json").read_text("utf-8")
    network.save_pretrained(directory)
    (directory / "generation_config.json").write_text(generation, "utf-8")


_NAMED_IDS = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "pad_token": "pad_token_id"}


if __name__ == "__main__":
    write_network(FAMILIES[sys.argv[2]], Path(sys.argv[1]))
