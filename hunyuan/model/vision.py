"""The vision tower: transformers' SigLIP 2 and the MLP to the backbone's width (docs/model.md, section 10).

Knows how to build transformers' module from a checkpoint's `vit` entry. All `max_num_patches` rows are kept:
the backbone attends to the padding rows too.
"""

from __future__ import annotations

from dataclasses import asdict

from torch import Tensor, nn
from transformers import Siglip2VisionConfig
from transformers.models.siglip2 import modeling_siglip2

from hunyuan.model.config import AlignerConfig, VitConfig


def build_vision_model(vit: VitConfig) -> nn.Module:
    """transformers' SigLIP 2 encoder with the checkpoint's own parameter names."""
    config = Siglip2VisionConfig(**asdict(vit))
    config._attn_implementation = "sdpa"
    # transformers 4 keeps the network in an inner class, transformers 5 in the model itself.
    network = getattr(modeling_siglip2, "Siglip2VisionTransformer", None) or modeling_siglip2.Siglip2VisionModel
    return network(config).eval()


class VisionAligner(nn.Module):
    """Linear layers with GELU between: `[n, patches, vit]` -> `[n, patches, hidden]`."""

    def __init__(self, config: AlignerConfig) -> None:
        super().__init__()
        modules: list[nn.Module] = [nn.Linear(config.input_dim, config.n_embed)]
        for _ in range(1, config.depth):
            modules += [nn.GELU(), nn.Linear(config.n_embed, config.n_embed)]
        self.layers = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
