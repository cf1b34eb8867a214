"""The tokenizer of a tiny checkpoint, and the words that its text stage says.

A byte-level BPE trained on the few sentences below, followed by every special token of the official tokenizer in the
official order (docs/model.md, section 11). The real one differs in having about 128,000 ordinary tokens. Knows nothing
of weights: `script_pairs` says which token follows which, `tiny_weights.py` makes the weights obey.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from hunyuan.errors import CheckpointError

ImageSize = Literal[256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192]
"""The base sizes that have an `<img_size_N>` token."""

THINK_TEXT = "Keep the photo and change colours"
RECAPTION_TEXT = "Bright picture with warm evening light"
SCRIPT_COT_TEXT = f"<think>{THINK_TEXT}</think><recaption>{RECAPTION_TEXT}</recaption>"
"""What the text stage of every tiny checkpoint answers to a `think_recaption` request."""

SCRIPT_RATIO = 13
"""The bucket the tiny model asks for: 19 wide to 13 high, which is where a 1000x700 photo belongs."""

_MERGES = 128
_RESERVED = 4

# Words of the script come up often enough for each to become one token; the rest is there to give a prompt some merges.
_SENTENCES = (
    *(THINK_TEXT, RECAPTION_TEXT) * 6,
    "Make the sky blue and the grass green.",
    "Put a red hat on the cat, and keep the dog as it is.",
    "The background of the picture is a quiet street in the rain.",
    "A small house stands at the lake; the water shows the mountains.",
    "Replace the car with a bicycle and make it look like a painting.",
    "User: what is in the image? Assistant: a table, two chairs and a lamp.",
)


def build_tokenizer() -> Tokenizer:
    """The same tokenizer on every call: about 380 ordinary tokens, then the special ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + _MERGES, min_frequency=1, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special_tokens()])
    return tokenizer


def special_tokens() -> list[str]:
    """Every special token, in the order of their ids."""
    names = ["<|endoftext|>", "<|startoftext|>", *(f"<|extra_{i}|>" for i in range(_RESERVED))]
    names += ["<boi>", "<eoi>", "<boa>", "<eoa>", "<bov>", "<eov>", "<img>", "<audio>", "<video>", "<pad>", "<cfg>"]
    names += ["<iw>", "<ih>", "<bot>", "<eot>", "<text>", "<mask>", "<timestep>", "<recaption>", "</recaption>"]
    names += ["<bof>", "<eof>", "<face>", "<think>", "</think>", "<answer>", "</answer>"]
    names += ["<und_boi>", "<und_eoi>", "<src_boi>", "<src_eoi>", "<gen_boi>", "<gen_eoi>", "<gen_img>"]
    names += [f"<img_size_{size}>" for size in get_args(ImageSize)]
    names += [f"<img_ratio_{i}>" for i in range(33)]
    names += ["<joint_img_sep>", "<ref>", "</ref>", "<quad>", "</quad>"]
    names += [f"<pos_{axis}_{i}>" for axis in "xy" for i in range(1000)]
    names += ["<guidance>"]
    names += [f"<{slash}relation_{i}>" for slash in ("", "/") for i in range(10)]
    # Four ratios came with Instruct: they stand here, far from the first 33.
    names += [f"<img_ratio_{i}>" for i in range(33, 37)]
    return [*names, "<timestep_r>"]


def script_pairs(tokenizer: Tokenizer, base_size: int) -> list[tuple[int, int]]:
    """Which token id is followed by which: the thought, the caption and the picture's ratio.

    What lies between the three (`</think>` to `<recaption>`, `</recaption>` to `<answer>` and so on) is left out: the
    engine forces those tokens, and a model that said them by itself would hide an engine that does not.

    Raises:
        CheckpointError: a word is not one token, or a token would have two followers.
    """
    pairs: list[tuple[int, int]] = []
    for tag, text in (("think", THINK_TEXT), ("recaption", RECAPTION_TEXT)):
        ids = tokenizer.encode(f"<{tag}>{text}</{tag}>", add_special_tokens=False).ids
        if len(ids) != len(text.split()) + 2:
            raise CheckpointError(f"tiny tokenizer: a word of {text!r} is more than one token")
        pairs += pairwise(ids)
    pairs.append(
        (tokenizer.token_to_id(f"<img_size_{base_size}>"), tokenizer.token_to_id(f"<img_ratio_{SCRIPT_RATIO}>"))
    )
    if len({source for source, _ in pairs}) != len(pairs) or len({target for _, target in pairs}) != len(pairs):
        raise CheckpointError("tiny tokenizer: a word stands twice in the script")
    return pairs
