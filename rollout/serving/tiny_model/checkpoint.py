"""Writes a tiny checkpoint: random weights, tokenizer, template and processor configuration."""

import json
import shutil
from pathlib import Path

from rollout.images.processors import import_trainer_extra
from rollout.serving.tiny_model.families import CONTEXT_LENGTH, FAMILIES, SHIPPED_MODEL_DIRECTORY, PatchSizes

WEIGHT_SCALE = 6.0
"""The factor for the initial weights. Without it, logits are almost flat, and hardly depend on the prompt."""


def make_checkpoint(
    directory: Path,
    family: str,
    *,
    seed: int = 0,
    scale: float = WEIGHT_SCALE,
    patch_sizes: PatchSizes | None = None,
    merges: int | None = None,
) -> int:
    """Write a checkpoint of a family into a directory, and return its number of parameters.

    Args:
        directory: the directory of the checkpoint; files that are there are replaced.
        family: the name of the family.
        seed: the seed of the random weights.
        scale: the factor for the usual initial weights of the architecture.
        patch_sizes: how the model divides images; None means as the family's models do.
        merges: the number of the tokenizer's merges, so that its vocabulary is smaller; None means all.

    Raises:
        ConfigurationError: torch or transformers is missing.
    """
    torch = import_trainer_extra("torch")
    import_trainer_extra("transformers")
    from tokenizers import Tokenizer
    from transformers import GenerationConfig

    tiny_family = FAMILIES[family]
    sizes = patch_sizes or tiny_family.patch_sizes
    tokenizer_json = _tokenizer_with(merges)
    tokenizer = Tokenizer.from_str(tokenizer_json)
    token_ids = tokenizer.get_vocab(with_added_tokens=True)
    torch.manual_seed(seed)
    vocabulary_size = tokenizer.get_vocab_size(with_added_tokens=True)
    network = tiny_family.build_network(vocabulary_size, token_ids.__getitem__, sizes).to(torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(scale)
    directory.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(directory)
    GenerationConfig(
        bos_token_id=token_ids["<|endoftext|>"],
        eos_token_id=[token_ids["<|im_end|>"], token_ids["<|endoftext|>"]],
        pad_token_id=token_ids["<|endoftext|>"],
        do_sample=True,
    ).save_pretrained(directory)
    (directory / "tokenizer.json").write_text(tokenizer_json, "utf-8")
    shutil.copyfile(tiny_family.chat_template, directory / "chat_template.jinja")
    shipped_tokenizer_config = json.loads((SHIPPED_MODEL_DIRECTORY / "tokenizer_config.json").read_text("utf-8"))
    json_files = {
        "tokenizer_config.json": {**shipped_tokenizer_config, "model_max_length": CONTEXT_LENGTH},
        **tiny_family.config_files(sizes),
    }
    for name, content in json_files.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return sum(parameter.numel() for parameter in network.parameters())


def _tokenizer_with(merges: int | None) -> str:
    """Return the shipped tokenizer.json with only this number of merges, and without the tokens of the others."""
    text = (SHIPPED_MODEL_DIRECTORY / "tokenizer.json").read_text("utf-8")
    if merges is None:
        return text
    settings = json.loads(text)
    model = settings["model"]
    removed = {"".join(pair) for pair in model["merges"][merges:]}
    model["merges"] = model["merges"][:merges]
    model["vocab"] = {token: at for at, token in enumerate(token for token in model["vocab"] if token not in removed)}
    for at, token in enumerate(settings["added_tokens"], start=len(model["vocab"])):
        token["id"] = at
    return json.dumps(settings, ensure_ascii=False, indent=2)
