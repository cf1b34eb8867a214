"""The checkpoint's tokenizer and its special tokens by name (docs/model.md, section 11).

Knows ids and text, nothing of how a sequence is laid out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as BpeTokenizer

from hunyuan.checkpoint.folder import read_file
from hunyuan.checkpoint.untrusted import what_it_is
from hunyuan.errors import CheckpointError

FILE_NAME = "tokenizer.json"
MOST_BYTES = 32 << 20
ALL_RATIOS = 37
BASE_RATIOS = 33

# What detokenized English looks like; applied in this order (docs/model.md, section 15).
_CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def read_bpe(folder: Path) -> BpeTokenizer:
    """A folder's tokenizer as it is in the file. Raises `CheckpointError`: it is missing, or no tokenizer."""
    data = read_file(folder, FILE_NAME, MOST_BYTES)
    if known := what_it_is(data):
        raise CheckpointError(f"{FILE_NAME} is no tokenizer: {known}")
    try:
        return BpeTokenizer.from_buffer(data)
    except Exception as error:  # the library raises nothing more telling
        raise CheckpointError(f"{FILE_NAME} is no tokenizer: {error}") from error


class Tokenizer:
    """Byte-level BPE plus the special tokens that the model was trained with.

    Args:
        folder: the checkpoint folder, holding `tokenizer.json`.
        base_size: the checkpoint's `image_base_size`, which picks the `<img_size_N>` token.
        extra_ratios: 37 ratio tokens; without, the first 33.
        needed: further special tokens that this checkpoint's variant uses.

    Raises:
        CheckpointError: the file or a needed special token is missing.
    """

    def __init__(self, folder: Path, base_size: int, extra_ratios: bool = True, needed: Sequence[str] = ()) -> None:
        self._bpe = read_bpe(Path(folder))
        ratios = ALL_RATIOS if extra_ratios else BASE_RATIOS
        self._require([*_NEEDED, f"<img_size_{base_size}>", *(f"<img_ratio_{i}>" for i in range(ratios)), *needed])
        self.bos, self.cfg = self.id("<|startoftext|>"), self.id("<cfg>")
        self.boi, self.eoi, self.img = (self.id(t) for t in ("<boi>", "<eoi>", "<img>"))
        self.timestep, self.joint_sep = self.id("<timestep>"), self.id("<joint_img_sep>")
        self.think, self.end_think = self.id("<think>"), self.id("</think>")
        self.recaption, self.end_recaption = self.id("<recaption>"), self.id("</recaption>")
        self.answer = self.id("<answer>")
        self.size_text = f"<img_size_{base_size}>"
        self.size = self.id(self.size_text)
        # Index = bucket index. The ids are NOT contiguous between 32 and 33.
        self.ratios = tuple(self.id(f"<img_ratio_{i}>") for i in range(ratios))
        self._ratio_index = {token: index for index, token in enumerate(self.ratios)}

    def id(self, token: str) -> int:
        """The id of a special token by its name."""
        found = self._bpe.token_to_id(token)
        if found is None:
            raise CheckpointError(f"tokenizer.json: special token {token} is missing")
        return found

    def encode(self, text: str) -> list[int]:
        """One text piece to ids. Special tokens spelled out in the text become those tokens."""
        return self._bpe.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text, special tokens kept, spaces before punctuation cleaned up."""
        text = self._bpe.decode(list(ids), skip_special_tokens=False)
        for spaced in _CLEAN_UP:
            text = text.replace(spaced, spaced.strip())
        return text

    def ratio_index(self, token: int) -> int | None:
        """The bucket index that a ratio token stands for; None for any other token."""
        return self._ratio_index.get(token)

    def _require(self, tokens: Sequence[str]) -> None:
        missing = [t for t in tokens if self._bpe.token_to_id(t) is None]
        if missing:
            raise CheckpointError(f"tokenizer.json: special tokens missing: {', '.join(missing)}")


_NEEDED = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<boi>",
    "<eoi>",
    "<img>",
    "<cfg>",
    "<timestep>",
    "<recaption>",
    "</recaption>",
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<joint_img_sep>",
)
