"""How many bytes the weights take, by part and by layer, in any of the formats they can be stored in.

Counted from the table of tensors, so it is exact. Also the names of the formats that people use: "4bit" for MXFP4
experts, "mixed" for layers that differ. Knows no GPU and nothing of a request.
"""

from __future__ import annotations

from dataclasses import dataclass

from hunyuan.checkpoint.tensor_table import ROUTER_SUFFIX, expected_tensors
from hunyuan.formats.config import CheckpointConfig

FORMATS = {"bf16": "bf16", "fp8": "fp8", "4bit": "mxfp4"}
"""What `HUNYUAN_WEIGHTS` says and how a config calls it, best quality first."""

MIXED = "mixed"


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of each part; `experts`, `dense` and `router` by layer, the others once.

    Attributes:
        dense: attention, shared MLP and norms.
        head: lm_head and the final norm.
        image_layers: latents to tokens and back, and the timestep embedders.
    """

    experts: tuple[int, ...]
    dense: tuple[int, ...]
    router: tuple[int, ...]
    head: int
    embedding: int
    autoencoder: int
    vision: int
    image_layers: int

    def layer(self, index: int) -> int:
        return self.experts[index] + self.dense[index] + self.router[index]

    @property
    def outside(self) -> int:
        """All that belongs to no layer."""
        return self.head + self.embedding + self.autoencoder + self.vision + self.image_layers

    @property
    def painting(self) -> int:
        """Of what belongs to no layer: what a denoising step reads."""
        return self.embedding + self.image_layers

    @property
    def total(self) -> int:
        return self.outside + sum(self.layer(i) for i in range(len(self.experts)))


def weight_bytes(config: CheckpointConfig, itemsize: int = 2) -> WeightBytes:
    """The weights as they lie on the device.

    Args:
        itemsize: bytes of the model's own dtype, which "bf16" in the config's formats stands for.

    Raises:
        CheckpointError: see `expected_tensors`.
    """
    layers = config.num_hidden_layers
    by_layer = {part: [0] * layers for part in ("experts", "dense", "router")}
    once = dict.fromkeys(("head", "embedding", "autoencoder", "vision", "image_layers"), 0)
    for spec in expected_tensors(config).values():
        part, layer = _part(spec.key)
        size = spec.numel * itemsize if spec.kind == "plain" else spec.nbytes
        if layer is None:
            once[part] += size
        else:
            by_layer[part][layer] += size
    return WeightBytes(
        experts=tuple(by_layer["experts"]), dense=tuple(by_layer["dense"]), router=tuple(by_layer["router"]), **once
    )


def _part(key: str) -> tuple[str, int | None]:
    """The part a tensor belongs to, and its layer."""
    if key.startswith("model.layers."):
        layer = int(key.split(".")[2])
        kind = "router" if key.endswith(ROUTER_SUFFIX) else "experts" if ".mlp.experts." in key else "dense"
        return kind, layer
    for prefix, part in (("model.wte.", "embedding"), ("vae.", "autoencoder"), ("vision_", "vision")):
        if key.startswith(prefix):
            return part, None
    return ("head" if key.startswith(("lm_head.", "model.ln_f.")) else "image_layers"), None


def stored_weights(config: CheckpointConfig) -> str:
    """What a folder with this config holds, as `HUNYUAN_WEIGHTS` would say it: bf16, fp8, 4bit or mixed."""
    kinds = {config.expert_formats[i] for i in range(config.num_hidden_layers) if config.is_moe(i)} or {"bf16"}
    names = [name for name, kind in FORMATS.items() if kind in kinds]
    return names[0] if len(names) == 1 else MIXED
