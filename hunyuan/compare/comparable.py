"""Which checkpoints can be measured against a reference: asked of the small files, before a weight is loaded.

Each measure needs something to be the same on both sides, and only that is looked at here. Number formats, merged
adapters, attention heads, guidance (Distil and the full model) and computing types may differ. Knows folders, configs
and requests; no network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from hunyuan import EditRequest
from hunyuan.checkpoint.folder import CONFIG_FILE, read_config
from hunyuan.errors import CheckpointError
from hunyuan.formats.config import CheckpointConfig
from hunyuan.model.config import ModelConfig
from hunyuan.pictures.reader import load_image
from hunyuan.prompt.resolution import Size, aligned_output_size, parse_resolution, resolution_group
from hunyuan.prompt.tokenizer import FILE_NAME, read_bpe

NETWORK = (
    "vocab_size",  # tokens of the texts
    "hidden_size",  # the residual stream ...
    "num_hidden_layers",  # ... behind each layer
    "vae.latent_channels",  # B is given A's latents
    "vae_downsample_factor",
    "image_base_size",
)
EXPERTS = ("num_experts", "moe_intermediate_size", "moe_layer_num_skipped")
"""Only the error of weights needs these, and it is measured against weights that are not quantized."""
SHAPES = ("model_version", "image_fixed_shapes")
"""They decide about four of the shapes a picture may have; the base model and Instruct have all others in common."""


class NotComparable(CheckpointError):
    """Checkpoints that no measure of `hunyuan compare` is defined for."""


@dataclass(frozen=True)
class Side:
    """What is asked of a checkpoint folder."""

    config: CheckpointConfig
    tokenizer: Tokenizer

    @classmethod
    def read(cls, folder: Path) -> Side:
        """Raises `CheckpointError`, naming the folder: its config or its tokenizer is missing or malformed."""
        try:
            return cls(read_config(folder), read_bpe(folder))
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error


def check_comparable(reference: Path, candidates: Sequence[Path], cases: Sequence[EditRequest]) -> None:
    """Says nothing where every candidate can be compared with the reference on these requests.

    Args:
        cases: of fixed sizes.

    Raises:
        NotComparable: what differs of each candidate that cannot be, with both values.
        CheckpointError: a folder's config or tokenizer is missing or malformed.
        InvalidRequest: a request's size or picture is none.
    """
    a, refused = Side.read(reference), []
    for folder in dict.fromkeys(candidates):
        if found := list(_differences(a, Side.read(folder), cases)):
            refused.append(f"{folder} cannot be compared with {reference}: {'; '.join(found)}")
    if refused:
        raise NotComparable("; ".join(refused))


def _differences(a: Side, b: Side, cases: Sequence[EditRequest]) -> Iterator[str]:
    quantized = a.config.quantization_config is not None
    fields = [_difference(field, a.config, b.config) for field in (NETWORK if quantized else NETWORK + EXPERTS)]
    if any(fields):
        yield f"{CONFIG_FILE} has {', '.join(filter(None, fields))}"
    if a.config.image_base_size == b.config.image_base_size:  # otherwise no picture's size is the same
        yield from _other_sizes(a.config, b.config, cases)
    if difference := _other_tokens(a.tokenizer, b.tokenizer):
        yield f"{FILE_NAME} has {difference}"


def _difference(field: str, ours: ModelConfig, theirs: ModelConfig) -> str | None:
    expected, found = _value(ours, field), _value(theirs, field)
    return None if found == expected else f"{field} {found!r} instead of {expected!r}"


def _value(config: ModelConfig, field: str) -> Any:
    """As a person would write it: one number where it is the same for all layers."""
    value: Any = config
    for name in field.split("."):
        value = getattr(value, name)
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


# --- sizes of pictures


def _other_sizes(ours: ModelConfig, theirs: ModelConfig, cases: Sequence[EditRequest]) -> Iterator[str]:
    """The first request that the two would paint in different sizes, and why."""
    if ours.has_extra_ratios == theirs.has_extra_ratios:
        return
    for case in cases:
        expected, found = _sizes(ours, case), _sizes(theirs, case)
        if found != expected:
            fields = filter(None, (_difference(field, ours, theirs) for field in SHAPES))
            sizes = next(f"{b} px instead of {a}" for a, b in zip(expected, found, strict=True) if a != b)
            yield f"{CONFIG_FILE} has {', '.join(fields)}, so that {case.prompt[:40]!r} is painted at {sizes}"
            return


def _sizes(config: ModelConfig, case: EditRequest) -> tuple[Size, Size]:
    """What the network paints, and the picture that comes of it."""
    group = resolution_group(config.image_base_size, config.has_extra_ratios)
    output = group.nearest(parse_resolution(case.resolution) or Size(1, 1))
    if not case.infer_align_image_size:
        return output.size, output.size
    sources = [Size(*load_image(image).size) for image in case.images]
    nearest = [(source, group.nearest(source).index) for source in sources]
    return output.size, aligned_output_size(nearest, output, config.image_base_size)


# --- texts


def _other_tokens(ours: Tokenizer, theirs: Tokenizer) -> str | None:
    """Why the same text is other tokens. A special token that only one side has is none of a text's."""
    expected, found = ours.get_vocab(), theirs.get_vocab()
    added = [token for each in (ours, theirs) for token in each.get_added_tokens_decoder().values()]
    special = {token.content for token in added if token.special}
    texts = (expected.keys() | found.keys()) - special | (expected.keys() & found.keys())
    wrong = [token for token in texts if expected.get(token) != found.get(token)]
    if wrong:
        first = min(wrong, key=lambda token: (expected.get(token, len(expected)), token))
        told = f"{len(wrong)} other tokens, for one " if len(wrong) > 1 else ""
        return f"{told}{first!r} {found.get(first)} instead of {expected.get(first)}"
    a, b = _rules(ours), _rules(theirs)
    other = [rule for rule in a.keys() | b.keys() if a.get(rule) != b.get(rule)]
    return f"another {', '.join(sorted(other))}" if other else None


def _rules(tokenizer: Tokenizer) -> dict[str, Any]:
    """How text is split, in the library's own form: files of different ages write the same in different ways."""
    content = json.loads(tokenizer.to_str())
    model = {f"model.{key}": value for key, value in content["model"].items() if key != "vocab"}
    return {key: content[key] for key in ("normalizer", "pre_tokenizer", "truncation")} | model
