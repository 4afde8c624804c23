"""Trains the small byte-level tokenizer of the embedded engine, from tokenizer_corpus.txt.

    python scripts/train_tokenizer.py rollout/serving/tiny_qwen3_vl/tokenizer.json

The same text gives the same file. The tokenizer has the names of Qwen's special tokens, so that it works with code for
Qwen3-VL, and less than a hundredth of Qwen's vocabulary.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from rollout.environments.palette import PALETTE

CORPUS = Path(__file__).with_name("tokenizer_corpus.txt")
VOCABULARY = 1024

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# These are not special tokens, as in Qwen's tokenizers: decoding keeps them even if it skips special tokens.
MARKUP = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")

WHOLE_WORDS = (*PALETTE, "user", "assistant", "system", "tool")
# Often enough to make each whole word one token before the vocabulary is full.
REPEATS = 40

# A word includes one sign or space before it; each digit is separate; line ends stay together.
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train() -> Tokenizer:
    """Train the tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - len(MARKUP),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP])
    return tokenizer


def _texts() -> Iterator[str]:
    yield CORPUS.read_text(encoding="utf-8")
    for word in WHOLE_WORDS:
        yield from [f"{word} {word}"] * REPEATS


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(train().to_str(pretty=True) + "\n", encoding="utf-8")
