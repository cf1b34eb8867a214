"""How much memory the service needs on each GPU, before any GPU is touched.

Weights are counted, keys and values too; what a request needs besides is estimated by the formulas here, each with
the measurement it was set by. Knows sizes and a placement of layers; does not choose formats (`choice.py`), does not
print (`table.py`), does not ask a driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hunyuan.formats.config import CheckpointConfig
from hunyuan.placement import layer_counts
from hunyuan.plan.weights import WeightBytes, weight_bytes
from hunyuan.prompt.resolution import Size, resolution_group

GIB = 2**30

MARGIN = 2 * GIB
"""Kept free on each GPU: the CUDA context with its loaded kernels and cuBLAS's and cuDNN's workspaces, which no
allocator of ours sees (about .7 GiB on an H100), and gaps between PyTorch's cached blocks, which grow with the
variety of picture sizes."""

VAE_FRAMES, PLAIN_VAE_FRAMES = 3, 11
"""Frames at full size and first-level width that the fast autoencoder holds at its peak, all its time steps counted:
2.77 GiB measured at 1024x1024 in 16 bits (bench_vae.py, one NVIDIA H200, 2026-11-25); 3 times 4 frames of 128
channels are 3 GiB. The plain one, which fp32 takes, took 11.0."""

MOST_EXPERT_TOKENS = 8448
"""Of one call of the experts' backend; longer inputs go in pieces. Two rows of the largest picture's tokens fit."""

MOE_OVERHEAD = 1.1
"""Sorting indices, scales and alignment on top of the expert buffers: the formula then gives 2.35 GiB at 8,240 tokens
of the real model where 1.3 to 2.3, depending on the weights' format, were measured."""


TEXT_ROW_TOKENS = 8192
"""Prompt and text of one request whose text is decoded with others'. One photograph, a long prompt and 2,048 tokens of
text are 7,800; a request with more has its text decoded alone."""


def text_rows(text_batch: int) -> int:
    """Rows beside those of the picture that `HUNYUAN_TEXT_BATCH` takes; with 1 a text is decoded in the picture's."""
    return 0 if text_batch == 1 else text_batch


@dataclass(frozen=True)
class Work:
    """The largest request that must run, and what is kept for others meanwhile.

    Attributes:
        rows: of keys and values: two with classifier-free guidance, one for a distilled checkpoint.
        capacity: tokens of a whole sequence, condition images, text and painted image together.
        size: of the painted picture.
        image_tokens: of the painted picture, its special tokens included.
        texts: rows of keys and values beside those, for texts that are decoded together; 0 where each is alone.
    """

    rows: int
    capacity: int
    size: Size
    image_tokens: int
    texts: int = 0

    @classmethod
    def create(
        cls, config: CheckpointConfig, size: Size | None = None, capacity: int | None = None, texts: int = 0
    ) -> Work:
        """The bucket nearest to `size`, or the largest one; `capacity` or all of `max_position_embeddings`."""
        group = resolution_group(config.image_base_size, config.has_extra_ratios)
        sizes = [bucket.size for bucket in group.buckets]
        largest = max(sizes, key=lambda s: (s.width * s.height, -abs(s.width - s.height)))
        chosen = largest if size is None else group.nearest(size).size
        down_h, down_w = config.vae_downsample_factor
        tokens = (chosen.height // down_h) * (chosen.width // down_w) + config.num_gen_special_tokens
        capacity = min(capacity or config.max_position_embeddings, config.max_position_embeddings)
        return cls(1 if config.cfg_distilled else 2, capacity, chosen, tokens, texts)

    @property
    def text_capacity(self) -> int:
        """Tokens of a row for texts."""
        return min(self.capacity, TEXT_ROW_TOKENS)

    @property
    def prompt_tokens(self) -> int:
        """What is left for text and condition images; they may all run in one pass."""
        return max(self.capacity - self.image_tokens, 1)

    @property
    def pass_tokens(self) -> int:
        """Tokens of the largest single pass: a whole prompt, or all rows of a denoising step."""
        return max(self.prompt_tokens, self.rows * self.image_tokens)


@dataclass(frozen=True)
class Stages:
    """Bytes that one stage needs beyond weights, keys and values and the experts' workspace; given back after it."""

    layers: int
    vision: int
    autoencoder: int

    @property
    def largest(self) -> int:
        return max(self.layers, self.vision, self.autoencoder)


@dataclass(frozen=True)
class GpuNeed:
    """One GPU's share, in bytes. `memory` is what the GPU has, `layers` how many of them it holds.

    `begun` is what edits keep whose texts are decoded together, keys and values aside.
    """

    memory: int
    layers: int
    experts: int
    dense: int
    router: int
    outside: int
    kv: int
    workspace: int
    stage: int
    begun: int = 0
    margin: int = MARGIN

    @property
    def weights(self) -> int:
        return self.experts + self.dense + self.router + self.outside

    @property
    def needed(self) -> int:
        return self.weights + self.kv + self.begun + self.workspace + self.stage + self.margin

    @property
    def left(self) -> int:
        return self.memory - self.needed


@dataclass(frozen=True)
class MemoryPlan:
    """What `config`'s weights and `work` need on each GPU, or on one GPU of any size where they do not fit.

    Attributes:
        copies: each of two GPUs holds all layers and runs one row of guidance; otherwise each layer exists once.
    """

    config: CheckpointConfig
    work: Work
    weights: WeightBytes
    stages: Stages
    gpus: tuple[GpuNeed, ...]
    fits: bool
    copies: bool = False

    @property
    def needed(self) -> int:
        return sum(gpu.needed for gpu in self.gpus)

    @property
    def layer_counts(self) -> tuple[int, ...]:
        """For `Placement.in_order`."""
        return tuple(gpu.layers for gpu in self.gpus)


def kv_layer_bytes(config: CheckpointConfig, work: Work, itemsize: int) -> int:
    """Keys and values of one layer."""
    tokens = work.rows * work.capacity + work.texts * work.text_capacity
    return 2 * tokens * config.num_key_value_heads * config.attention_head_dim * itemsize


def begun_bytes(config: CheckpointConfig, work: Work, itemsize: int) -> int:
    """Embeddings and latents of condition images, kept from an edit's prompt to its picture for each row of texts.

    One row of either per token of an image: no more than the tokens of the row that the prompt lies in.
    """
    return work.texts * work.text_capacity * (config.hidden_size * itemsize + config.vae.latent_channels * 4)


def moe_workspace_bytes(config: CheckpointConfig, tokens: int) -> int:
    """The fused experts' buffers for a pass of `tokens`, 16 bits per value.

    Each token is there once for each of its experts: as their input and output, as gate and up, and as the two's
    product.
    """
    widths = zip(config.moe_topk, config.moe_intermediate_size, strict=True)
    values = max(
        (k * (2 * config.hidden_size + 3 * width) for i, (k, width) in enumerate(widths) if config.is_moe(i)), default=0
    )
    return int(MOE_OVERHEAD * 2 * tokens * values)


def stage_bytes(config: CheckpointConfig, work: Work, itemsize: int) -> Stages:
    """Estimates from what plain PyTorch keeps alive at once; fused kernels need less."""
    hidden, tokens, inner = config.hidden_size, work.pass_tokens, config.intermediate_size
    heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.attention_head_dim
    shared = max((w * n for w, n in zip(config.moe_intermediate_size, config.num_shared_expert, strict=True)))
    # Fast operations make no fp32 forms; the e4m3 copies of HUNYUAN_ATTENTION=fp8 take a part of that room.
    # q, k and v, and four fp32 forms of them under way through the rotary embedding and the norms.
    attention = heads * (itemsize + 4 * 4)
    # The norm's two fp32 forms and its result, the shared MLP's gate, up and product, and the block's two sums.
    mlp = hidden * (2 * 4 + 3 * itemsize) + 3 * max(shared, inner) * itemsize
    layers = tokens * (2 * hidden * itemsize + max(attention, mlp))
    vit, patches = config.vit, config.vit_processor.max_num_patches
    # Two fp32 forms of the stream, q, k, v and the MLP's inside; attention scores in the worst case all at once.
    vision = patches * (vit.hidden_size * (2 * 4 + 4 * itemsize) + 2 * vit.intermediate_size * itemsize)
    vision += vit.num_attention_heads * patches**2 * 4
    pixels = work.size.width * work.size.height
    frame = config.vae.ffactor_temporal * config.vae.block_out_channels[0] * itemsize
    frames = VAE_FRAMES if itemsize == 2 else PLAIN_VAE_FRAMES
    return Stages(layers, vision, frames * frame * pixels)


def plan_memory(config: CheckpointConfig, memories: Sequence[int], work: Work, itemsize: int = 2) -> MemoryPlan:
    """Places the layers in order over the fewest of the GPUs that hold them.

    A model over several GPUs decodes each text alone, so that nothing is kept for texts together.

    Args:
        config: with the formats that the weights are to have on the device.
        memories: bytes of each GPU, in the order in which they are to be used; at least one.
        itemsize: bytes of the model's dtype.
    """
    weights, stages = weight_bytes(config, itemsize), stage_bytes(config, work, itemsize)
    workspace = moe_workspace_bytes(config, min(work.pass_tokens, MOST_EXPERT_TOKENS))
    others = workspace + stages.layers + MARGIN
    for count in range(1, len(memories) + 1):
        kept = work if count == 1 else replace(work, texts=0)
        kv, begun = kv_layer_bytes(config, kept, itemsize), begun_bytes(config, kept, itemsize)
        sizes = [weights.layer(i) + kv for i in range(config.num_hidden_layers)]
        room = [memories[0] - weights.outside - begun - workspace - stages.largest - MARGIN]
        counts = layer_counts(sizes, room + [memory - others for memory in memories[1:count]])
        if counts is not None:
            shares, used = counts, memories
            break
    else:  # what one GPU with all their memory would have to hold
        kept, kv, begun = work, kv_layer_bytes(config, work, itemsize), begun_bytes(config, work, itemsize)
        shares, used = (len(sizes),), [sum(memories)]
    gpus, start = [], 0
    for index, layers in enumerate(shares):
        held = slice(start, start + layers)
        gpus.append(
            GpuNeed(
                memory=used[index],
                layers=layers,
                **_layer_weights(weights, held),
                outside=weights.outside if index == 0 else 0,
                kv=kv * layers,
                workspace=workspace,
                stage=stages.largest if index == 0 else stages.layers,
                begun=begun if index == 0 else 0,
            )
        )
        start += layers
    return MemoryPlan(config, kept, weights, stages, tuple(gpus), fits=counts is not None)


def _layer_weights(weights: WeightBytes, held: slice) -> dict[str, int]:
    parts = {"experts": weights.experts, "dense": weights.dense, "router": weights.router}
    return {name: sum(sizes[held]) for name, sizes in parts.items()}


def plan_copies(config: CheckpointConfig, memories: Sequence[int], work: Work, itemsize: int = 2) -> MemoryPlan | None:
    """All layers on each of the first two GPUs, which run a row of guidance each; everything else on the first.

    None where there is one GPU, one row, or no room. Arguments as in `plan_memory`.
    """
    if len(memories) < 2 or work.rows < 2:
        return None
    work = replace(work, rows=1)
    weights, stages = weight_bytes(config, itemsize), stage_bytes(config, work, itemsize)
    layers = config.num_hidden_layers
    first = GpuNeed(
        memory=memories[0],
        layers=layers,
        **_layer_weights(weights, slice(None)),
        outside=weights.outside,
        kv=layers * kv_layer_bytes(config, work, itemsize),
        workspace=moe_workspace_bytes(config, min(work.pass_tokens, MOST_EXPERT_TOKENS)),
        stage=stages.largest,
        begun=begun_bytes(config, work, itemsize),
    )
    row = layers * kv_layer_bytes(config, replace(work, texts=0), itemsize)
    second = replace(first, memory=memories[1], outside=weights.painting, kv=row, stage=stages.layers, begun=0)
    if min(first.left, second.left) < 0:
        return None
    return MemoryPlan(config, work, weights, stages, (first, second), fits=True, copies=True)
