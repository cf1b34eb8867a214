"""The whole network: backbone, autoencoder, vision tower and the embeddings between them.

Holds weights under the checkpoint's names and offers each computation of the model as a method. Keeps no
request state, reads no files, draws no random numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hunyuan.model.config import ModelConfig
from hunyuan.model.embeddings import FinalLayer, PatchEmbed, TimestepEmbedder
from hunyuan.model.operations import PLAIN, Operations
from hunyuan.model.transformer import Transformer
from hunyuan.model.vae import Posterior, Vae
from hunyuan.model.vision import VisionAligner, build_vision_model


class HunyuanImage3(nn.Module):
    """HunyuanImage-3.0: one transformer that thinks in text and paints in latents."""

    operations: Operations = PLAIN

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        hidden, width, channels = config.hidden_size, config.patch_embed_hidden_dim, config.vae.latent_channels
        self.model = Transformer(config)
        self.lm_head: nn.Module = nn.Linear(hidden, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.wte.weight
        self.timestep_emb = TimestepEmbedder(hidden)
        self.time_embed, self.time_embed_2 = TimestepEmbedder(hidden), TimestepEmbedder(hidden)
        self.guidance_emb = TimestepEmbedder(hidden) if config.cfg_distilled else None
        self.timestep_r_emb = TimestepEmbedder(hidden) if config.use_meanflow else None
        self.patch_embed = PatchEmbed(channels, width, hidden)
        self.final_layer = FinalLayer(hidden, width, channels)
        self.vision_model = build_vision_model(config.vit)
        self.vision_aligner = VisionAligner(config.vit_aligner)
        self.vae = Vae(config.vae)

    @property
    def device(self) -> torch.device:
        return self.model.wte.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.wte.weight.dtype

    def embed_tokens(self, ids: Tensor) -> Tensor:  # [tokens] -> [tokens, hidden]
        return self.model.wte(ids)

    def embed_latents(self, latents: Tensor, t: Tensor) -> Tensor:
        """Scaled latents `[n, channels, h, w]` at time `t` `[n]` (0 to 1000) to tokens `[n, h * w, hidden]`."""
        return self.patch_embed(latents, self.time_embed(t))

    def embed_vision(self, patches: Tensor, shapes: Tensor, mask: Tensor) -> Tensor:
        """Patches `[n, max_patches, 3 * 16 * 16]` to tokens `[n, max_patches, hidden]`, padding rows included.

        `shapes`: grids of patches, integers `[n, 2]` (rows, columns), best on the CPU: their values are read, for
        which a GPU would have to end its work. `mask`: integers `[n, max_patches]`, 1 for real patches.
        """
        # By place: the mask's name differs between transformers 4 and 5.
        features = self.vision_model(patches.to(self.dtype), mask, shapes).last_hidden_state
        return self.vision_aligner(features)

    def encode_image(self, pixels: Tensor) -> Posterior:
        """Pixels `[n, 3, H, W]` in -1..1 to the posterior of their latents."""
        with self._vae_precision():
            return self.vae.encode(pixels)

    def decode_image(self, latents: Tensor) -> Tensor:
        """Scaled latents `[n, channels, h, w]` to pixels `[n, 3, H, W]`, fp32, about -1..1."""
        with self._vae_precision():
            return self.vae.decode(self.vae.unscale(latents)).float()

    def logits(self, hidden: Tensor) -> Tensor:
        """Residual stream `[..., hidden]` to fp32 `[..., vocab]`."""
        norm = self.model.ln_f
        return self.operations.logits(hidden, norm.weight, norm.eps, self.lm_head)

    def velocity(self, hidden: Tensor, t: Tensor, height: int, width: int) -> Tensor:
        """Residual stream of image tokens `[n, h * w, hidden]` at `t` `[n]` to fp32 `[n, channels, h, w]`."""
        return self.final_layer(hidden, self.time_embed_2(t), height, width).float()

    def _vae_precision(self) -> torch.autocast:
        """In 16 bits on a GPU: convolutions in fp16, norms in fp32. bf16 would lose picture detail."""
        enabled = self.device.type == "cuda" and self.vae.dtype.itemsize == 2
        return torch.autocast(self.device.type, dtype=torch.float16, enabled=enabled)
