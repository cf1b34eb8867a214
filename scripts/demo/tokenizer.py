"""The demo checkpoint's tokenizer: byte-level pieces learned from the wordings, and the official special tokens.

Any text can be encoded; what the first wordings said often is short. Every Chinese character is on its own, so that a
sentence that training never saw is still made of pieces that it did see. The merges are kept in `tokenizer_merges.txt`,
because trained weights are tied to them: wordings that came later are cut into these pieces, too. Knows nothing of the
checkpoint's other files.

    python -m scripts.demo.tokenizer OUT.json
    python -m scripts.demo.tokenizer --learn      writes the merges anew; nothing trained before can be used with them
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from hunyuan.checkpoint import tiny_tokenizer
from hunyuan.checkpoint.safetensors_file import write_durably
from scripts.demo.wordings import FAMILY_SHARE, draw

MERGES = 1500
MERGES_FILE = Path(__file__).parent / "tokenizer_merges.txt"
SYSTEM_PROMPT = "You edit pictures."
_SAMPLES = 30_000
_FRAME_OF_A_PROMPT = (SYSTEM_PROMPT, "User: ", "Assistant: ", "\n\n")


def build() -> Tokenizer:
    """The same tokenizer on every call: the alphabet's pieces, then one for each merge, then the special tokens."""
    lines = MERGES_FILE.read_text(encoding="utf-8").splitlines()
    merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
    pieces = [*_alphabet(), *(left + right for left, right in merges)]
    tokenizer = _empty(models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges))
    names = tiny_tokenizer.special_tokens()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return tokenizer


def learn() -> list[str]:
    """Merges for today's wordings, as lines of `tokenizer_merges.txt`."""
    tokenizer, alphabet = _empty(models.BPE()), _alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + MERGES, min_frequency=3, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def _alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _empty(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    apart = pre_tokenizers.Split(Regex(r"[\u3000-\u9fff\uff00-\uffef]"), behavior="isolated")
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([apart, pieces])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _texts() -> Iterator[str]:
    rng = Random(12)
    for _ in range(_SAMPLES):
        family = rng.choices(list(FAMILY_SHARE), list(FAMILY_SHARE.values()))[0]
        request = draw(rng, family)
        yield from (request.prompt, request.think, request.recaption)
    yield from _FRAME_OF_A_PROMPT * 100


if __name__ == "__main__":
    if sys.argv[1] == "--learn":
        MERGES_FILE.write_text("\n".join(learn()) + "\n", encoding="utf-8")
    else:
        write_durably(Path(sys.argv[1]), build().to_str(pretty=False))
