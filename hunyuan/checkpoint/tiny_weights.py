"""Random weights for a tiny checkpoint that nevertheless says something sensible.

Two aims meet here. Pictures must depend on every weight and every input, so all layers get an ordinary random start
that neither fades nor explodes. Text must not: a random language model would ramble until its last allowed token, so
the token embeddings carry a script (`tiny_tokenizer.py`) that any prompt, image, seed and usual sampling setting obeys.

How the script works: the embedding of each of its tokens is a direction of its own, far longer than anything the
layers add to it. Whatever the context, the final norm then sees little but "which token am I", and the output row of
the token that follows points along that very direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt

import torch
from torch import Tensor

from hunyuan.checkpoint.tensor_table import ROUTER_SUFFIX, TensorSpec, expected_tensors
from hunyuan.formats.config import CheckpointConfig

SCRIPT_RMS = 16.0
"""Size of a script token's embedding entries; what all layers together add to it is about 1."""

SCRIPT_LOGIT = 40.0
"""Logit of the token that follows. All others stay below about 6, so that sampling has no choice."""

# Entries that are added to the stream as they are, not multiplied with anything: their own size counts.
_TABLES = {
    "model.wte.weight": 0.7,
    "vision_model.embeddings.position_embedding.weight": 0.3,
    "vision_model.head.probe": 0.3,
}
# Times the usual 1/sqrt(inputs). The first three make experts, context and prediction count for more than chance would
# have it; the last two keep pixels and latents in the range of real ones.
_GAINS = {
    ROUTER_SUFFIX: 1.5,
    "self_attn.o_proj.weight": 2.0,
    "final_layer.model.1.2.weight": 1.6,
    "vae.decoder.conv_out.weight": 0.6,
    "vae.encoder.conv_out.weight": 0.7,
}
# The second half of the encoder's output is a log variance: about exp(-5), so that a picture outweighs its noise.
_LOG_VARIANCE = -5.0


def random_weights(config: CheckpointConfig, script: Sequence[tuple[int, int]], seed: int) -> dict[str, Tensor]:
    """Every tensor of the checkpoint by its key, float32, on the CPU; the same for the same seed.

    Args:
        script: pairs of token ids, each followed by the other; at most `hidden_size` pairs.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {key: _initial(spec, config, generator) for key, spec in expected_tensors(config).items()}
    weights["vae.encoder.conv_out.bias"][config.vae.latent_channels :] += _LOG_VARIANCE
    _write_script(weights["model.wte.weight"], weights["lm_head.weight"], script, generator)
    return weights


def _initial(spec: TensorSpec, config: CheckpointConfig, generator: torch.Generator) -> Tensor:
    noise = torch.randn(spec.shape, generator=generator)
    if spec.key.endswith("bias"):
        return 0.05 * noise
    if len(spec.shape) == 1:  # the weight of a norm
        return 1 + 0.1 * noise
    return noise * _deviation(spec, config)


def _deviation(spec: TensorSpec, config: CheckpointConfig) -> float:
    """The standard deviation of a matrix or kernel."""
    if spec.key in _TABLES:
        return _TABLES[spec.key]
    gain = next((gain for suffix, gain in _GAINS.items() if spec.key.endswith(suffix)), 1.0)
    if spec.key.startswith("model.layers") and spec.key.endswith(("o_proj.weight", "down_proj.weight")):
        # These add to the residual stream once per layer: together as much at any depth.
        gain /= sqrt(config.num_hidden_layers)
    return gain / sqrt(prod(spec.shape[1:]))


def _write_script(
    embedding: Tensor, output: Tensor, script: Sequence[tuple[int, int]], generator: torch.Generator
) -> None:
    """Overwrites the rows of the script's tokens in `embedding` and `output`, both `[vocab, hidden]`."""
    hidden = embedding.shape[1]
    directions, _ = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator))
    for direction, (current, following) in zip(directions, script, strict=False):
        embedding[current] = SCRIPT_RMS * sqrt(hidden) * direction
        # The final norm brings the stream to length sqrt(hidden).
        output[following] = SCRIPT_LOGIT / sqrt(hidden) * direction
