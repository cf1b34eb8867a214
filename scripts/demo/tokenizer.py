"""The demo checkpoint's tokenizer: byte-level pieces learned from the wordings, and the official special tokens.

Any text can be encoded; what the wordings say often is short. Every Chinese character is on its own, so that a sentence
that training never saw is still made of pieces that it did see. Knows nothing of the checkpoint's other files.

    python -m scripts.demo.tokenizer OUT.json
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from hunyuan.checkpoint import tiny_tokenizer
from scripts.demo.wordings import FAMILY_SHARE, draw

MERGES = 1500
SYSTEM_PROMPT = "You edit pictures."
_SAMPLES = 30_000
_FRAME_OF_A_PROMPT = (SYSTEM_PROMPT, "User: ", "Assistant: ", "\n\n")


def build() -> Tokenizer:
    """The same tokenizer on every call."""
    tokenizer = Tokenizer(models.BPE())
    apart = pre_tokenizers.Split(Regex(r"[\u3000-\u9fff\uff00-\uffef]"), behavior="isolated")
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([apart, pieces])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + MERGES, min_frequency=3, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    names = tiny_tokenizer.special_tokens()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def _texts() -> Iterator[str]:
    rng = Random(12)
    for _ in range(_SAMPLES):
        family = rng.choices(list(FAMILY_SHARE), list(FAMILY_SHARE.values()))[0]
        request = draw(rng, family)
        yield from (request.prompt, request.think, request.recaption)
    yield from _FRAME_OF_A_PROMPT * 100


if __name__ == "__main__":
    build().save(sys.argv[1], pretty=False)
