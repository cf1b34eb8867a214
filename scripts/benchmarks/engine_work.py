"""How much work the stages of an edit are: floating-point operations and bytes that must move, from the sizes alone.

Counts what the model's formulas need, not what a kernel happens to do: a multiplication and an addition are two
operations, attention counts the pairs that may see each other, weights count once a step. Does not know any GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hunyuan.formats.config import CheckpointConfig
from hunyuan.model.attention import Segment

EXPERT_BYTES = {"bf16": 2.0, "fp8": 1.0, "mxfp4": 17 / 32}
DENSE_BYTES = {"bf16": 2.0, "fp8": 1.0}


@dataclass(frozen=True)
class Work:
    """Operations by the kind of multiplier they run on, and bytes."""

    expert_flop: float = 0.0
    dense_flop: float = 0.0
    attention_flop: float = 0.0
    conv_flop: float = 0.0
    bytes: float = 0.0

    @property
    def flop(self) -> float:
        return self.expert_flop + self.dense_flop + self.attention_flop + self.conv_flop

    def least_seconds(self, low_flops: float, bf16_flops: float, bandwidth: float, *, dense_low: bool) -> float:
        """The shortest time on a device with these rates; experts run at `low_flops`, dense layers if `dense_low`."""
        dense = self.dense_flop / (low_flops if dense_low else bf16_flops)
        rest = (self.attention_flop + self.conv_flop) / bf16_flops
        return max(self.expert_flop / low_flops + dense + rest, self.bytes / bandwidth)


@dataclass(frozen=True)
class WorkCounter:
    """Work of stretches of tokens through a model of these sizes."""

    config: CheckpointConfig

    def tokens(self, rows: int, segments: Sequence[Segment]) -> Work:
        """`rows` times the tokens of `segments` through all layers, keys and values of earlier ones being there."""
        c, count = self.config, rows * (segments[-1].stop - segments[0].start)
        pairs = rows * sum(pairs_of(segment) for segment in segments)
        layers = range(c.num_hidden_layers)
        return Work(
            expert_flop=sum(2 * count * c.moe_topk[i] * self._expert(i) for i in layers),
            dense_flop=sum(2 * count * (self._attention() + self._shared(i)) for i in layers),
            attention_flop=4.0 * pairs * c.num_attention_heads * c.attention_head_dim * c.num_hidden_layers,
            bytes=self._weight_bytes(min(count * c.moe_topk[0], c.num_experts[0])),
        )

    def decode(self, length: int) -> Work:
        """One token after `length` others, its logits included."""
        c = self.config
        work = self.tokens(1, [Segment(length, length + 1, causal=True)])
        cache = 2.0 * 2 * c.num_key_value_heads * c.attention_head_dim * length * c.num_hidden_layers
        head = c.vocab_size * c.hidden_size
        return Work(
            work.expert_flop,
            work.dense_flop + 2 * head,
            work.attention_flop,
            bytes=work.bytes + cache + head * DENSE_BYTES[c.dense_format],
        )

    def step(self, rows: int, segments: Sequence[Segment], pixels: int) -> Work:
        """One denoising step: the tokens of `segments`, and latents of `pixels` to tokens and back."""
        work = self.tokens(rows, segments)
        return Work(work.expert_flop, work.dense_flop, work.attention_flop, pixels * self._image_head(rows), work.bytes)

    def _attention(self) -> int:
        c = self.config
        return c.hidden_size * c.attention_head_dim * (2 * c.num_attention_heads + 2 * c.num_key_value_heads)

    def _shared(self, layer: int) -> int:
        c = self.config
        return 3 * c.hidden_size * c.moe_intermediate_size[layer] * c.num_shared_expert[layer] * c.use_mixed_mlp_moe

    def _expert(self, layer: int) -> int:
        return 3 * self.config.hidden_size * self.config.moe_intermediate_size[layer]

    def _weight_bytes(self, experts: int) -> float:
        c = self.config
        return sum(
            experts * self._expert(i) * EXPERT_BYTES[c.expert_formats[i]]
            + (self._attention() + self._shared(i)) * DENSE_BYTES[c.dense_format]
            for i in range(c.num_hidden_layers)
        )

    def _image_head(self, rows: int) -> float:
        """Operations a latent pixel: `patch_embed` once, `final_layer` for every row (docs/model.md, section 13)."""
        c = self.config
        hidden, middle, latent = c.hidden_size, c.patch_embed_hidden_dim, c.vae.latent_channels
        embed = 9 * latent * middle + 9 * middle * hidden + 9 * hidden * hidden + middle * hidden
        final = 9 * hidden * middle + 9 * middle * middle + hidden * middle + 9 * middle * latent
        return 2.0 * (embed + rows * final)


def pairs_of(segment: Segment) -> int:
    """How many pairs of a query and a key it sees."""
    count = segment.stop - segment.start
    return count * segment.start + (count * (count + 1) // 2 if segment.causal else count * count)
