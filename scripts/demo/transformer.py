"""The demo's transformer in training: the product's network, the losses, and one batch through it.

A sample is a whole edit: source pictures, request, thoughts, and several noisy copies of the answer at times of their
own behind one prefix, which costs much less than as many samples. Knows latents and tokens; where pictures and
wordings come from is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hunyuan.model.attention import Segment
from hunyuan.model.config import ModelConfig
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.operations import use_operations
from hunyuan.model.rope import Grid, positions_2d, rope_table
from hunyuan.model.vae import Vae
from hunyuan.prompt.layout import CondBlock
from scripts.demo.autoencoder import planar
from scripts.demo.operations import DenseExperts, Rule, TrainingOperations
from scripts.demo.sequences import Batch

FLOW_SHIFT = 3.0
TEXT_WEIGHT, BALANCE_WEIGHT = 0.3, 0.01
START_SHARE = 0.5
"""How many noisy answers stand at time 1, where the sampler begins and sees nothing of the answer."""
LEAST_TIME = 0.02


def build(config: ModelConfig, seed: int) -> tuple[HunyuanImage3, TrainingOperations]:
    """The network at its start, trainable, with the operations of training; the autoencoder is planar and frozen."""
    torch.manual_seed(seed)
    model = HunyuanImage3(config)
    for layer in cast(Iterable[Any], model.model.layers):
        layer.mlp.experts = DenseExperts(layer.mlp.experts)
        layer.layer = 0  # all layers alike, so that one compiled form serves them all
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("vae."):
                _initialise(name, parameter, config.num_hidden_layers)
        for block in cast(Iterable[Any], (model.patch_embed.model[1], model.final_layer.model[0])):
            block.emb_layers[1].weight.mul_(0.1)
    planar(model.vae)
    model.vae.requires_grad_(False)
    if getattr(model.vision_model, "head", None) is not None:
        model.vision_model.head.requires_grad_(False)  # nothing uses it
    operations = TrainingOperations()
    use_operations(model, operations)
    return model, operations


def _initialise(name: str, parameter: nn.Parameter, layers: int) -> None:
    """Starts at which no branch drowns another; what is written last starts at zero."""
    fan_in = parameter[0].numel() if parameter.dim() in (2, 4) else parameter.shape[-1]
    if name.startswith("vision_model.head"):
        parameter.zero_()
    elif name in ("lm_head.weight", "model.wte.weight"):
        # Words that never come up keep equal rows this way, and equal rows take no room in a compressed file.
        parameter.zero_() if name.startswith("lm_head") else parameter.normal_(0, 0.5)
    elif name.startswith("final_layer.model.1.2"):
        parameter.zero_()
    elif "position_embedding" in name:
        parameter.normal_(0, 0.5)
    elif name.endswith("mlp.gate.wg.weight"):
        parameter.normal_(0, 0.02)
    elif name.startswith("model.layers") and name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
        parameter.normal_(0, 1 / math.sqrt(fan_in * 2 * layers))
    elif parameter.dim() >= 2:
        parameter.normal_(0, 1 / math.sqrt(fan_in))
    elif name.endswith("bias"):
        parameter.zero_()


def matrices_and_others(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """What Muon steps, and tables, heads, norms and biases for AdamW; frozen parameters in neither."""
    tables = ("wte", "lm_head", "position_embedding", "gate.wg", "final_layer.model.1.2", "patch_embed.model.0")
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            inner = parameter.dim() >= 2 and not any(table in name for table in tables)
            (matrices if inner else others).append(parameter)
    return matrices, others


@dataclass
class Losses:
    """Of one batch.

    Attributes:
        velocity: fp32 `[n * copies]`, mean squared error of each noisy copy.
        weight: fp32 `[n * copies]`, how much each of these counts.
        text: cross entropy over the words that the model has to say, a scalar.
        balance: of the routers, a scalar; 1 is even.
        predicted: fp32 `[n * copies, channels, h, w]`, the velocity.
    """

    velocity: Tensor
    weight: Tensor
    text: Tensor
    balance: Tensor
    predicted: Tensor

    @property
    def picture(self) -> Tensor:
        """fp32 `[n * copies]`, mean squared error of the answer that each velocity leads to."""
        return self.weight * self.velocity

    @property
    def total(self) -> Tensor:
        return self.picture.mean() + TEXT_WEIGHT * self.text + BALANCE_WEIGHT * self.balance


@dataclass
class Noisy:
    """Noisy answers: latents `[n * copies, channels, h, w]`, their times 0 to 1, and the velocity that is wanted."""

    latents: Tensor
    sigma: Tensor
    wanted: Tensor

    @classmethod
    def draw(cls, clean: Tensor, copies: int, guess: Tensor | None = None) -> Noisy:
        """Half at time 1, half where the sampler comes by: at later times, on the way to a guess.

        An edit has one right answer. Trained on noisy copies of that answer, the network learns to read it off them,
        which the sampler never lets it do: its first guess stayed as it was through all steps. So a later time's
        latents hold the network's own guess, and what is wanted leads from there to the right answer.

        Args:
            clean: latents of the exact answers, `[n, channels, h, w]`.
            guess: the network's earlier answers to the same samples, as `answer` gives them; without them all are at
                time 1.
        """
        clean = clean.repeat_interleave(copies, dim=0)
        count, device = len(clean), clean.device
        even = (torch.randperm(count, device=device) + torch.rand(count, device=device)) / count
        sigma = (FLOW_SHIFT * even / (1 + (FLOW_SHIFT - 1) * even)).clamp(min=LEAST_TIME)
        at_start = torch.rand(count, device=device) < (1.0 if guess is None else START_SHARE)
        sigma = torch.where(at_start, 1.0, sigma)
        met = clean if guess is None else guess.repeat_interleave(copies, dim=0)  # at time 1 nothing of it is seen
        s = sigma[:, None, None, None]
        mixed = s * torch.randn_like(clean) + (1 - s) * met
        return cls(mixed, sigma, (mixed - clean) / s)

    @property
    def weight(self) -> Tensor:
        """fp32 `[n * copies]`: an error e of the velocity at time t is one of t * e of the answer it leads to."""
        return self.sigma.square()

    def answer(self, predicted: Tensor, copies: int) -> Tensor:
        """Where a velocity leads, without its gradient: of each sample's first copy, `[n, channels, h, w]`."""
        return (self.latents - self.sigma[:, None, None, None] * predicted).detach()[::copies]


class Trainee:
    """The network with what a batch's pass through it needs.

    Args:
        copies: noisy answers per sample.
        compiled: compile the layers, which then attend in tiles; for GPUs.
    """

    def __init__(
        self, model: HunyuanImage3, operations: TrainingOperations, count: int, copies: int, compiled: bool = False
    ) -> None:
        self.model, self.operations, self.count, self.copies, self.compiled = model, operations, count, copies, compiled
        self.device = model.device
        self.rules: dict[int, Rule] = {}
        self.vision_grid = 1, 1
        self.layer = torch.compile(self._layer, dynamic=False) if compiled else self._layer
        self._same_vision_grid()

    def rule(self, batch: Batch) -> Rule:
        """The attention rule for this batch; one object for all batches of equal length."""
        area = (self.model.config.image_base_size // 16) ** 2
        if batch.room not in self.rules:
            self.rules[batch.room] = Rule.create(self.count, batch.room, 1 + area, self.copies, self.device)
        rule = self.rules[batch.room]
        height, width = batch.grid
        rule.set(batch.length, [(c.vae.start, c.vit_stop) for c in batch.conds], height * width)
        return rule

    def losses(self, batch: Batch, sources: list[Tensor], conds: list[Tensor], noisy: Noisy) -> Losses:
        """One pass.

        Args:
            sources: pictures in 0..1, one stack per source of a sample, for the vision tower, which shrinks them.
            conds: their scaled latents.
        """
        rule = self.rule(batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            x, image = self._embed(batch, sources, conds, noisy, rule)
            rope = self._rope(batch, rule)
            self.operations.use(rule, flex=self.compiled)
            balances = []
            for layer in self.model.model.layers:
                x, balance = self.layer(layer, x, *rope)
                balances.append(balance)
            height, width = batch.grid
            tokens = x[:, rule.room :].unflatten(1, (self.copies, rule.stretch))[:, :, 1 : 1 + image]
            predicted = self.model.velocity(tokens.flatten(0, 1), noisy.sigma * 1000, height, width)
            logits = self.model.logits(x[:, : rule.room].flatten(0, 1)[batch.spoken])
        velocity = (predicted - noisy.wanted).square().mean((1, 2, 3))
        text = F.cross_entropy(logits, batch.words, reduction="sum") / max(len(batch.words), 1)
        return Losses(velocity, noisy.weight, text, torch.stack(balances).mean(), predicted)

    def _layer(self, layer: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        out = layer(x, (cos, sin), None, [Segment(0, x.shape[1], causal=False)])
        return out, self.operations.balance

    def _embed(
        self, batch: Batch, sources: list[Tensor], conds: list[Tensor], noisy: Noisy, rule: Rule
    ) -> tuple[Tensor, int]:
        """Embeddings fp32 `[n, tokens, hidden]` of all tokens, and how many image tokens each copy has."""
        model, count = self.model, len(batch.prefix)
        zero = torch.zeros(1, device=self.device)
        latents = [*conds, noisy.latents] if conds and conds[0].shape[2:] == noisy.latents.shape[2:] else None
        times = [zero.expand(len(c)) for c in conds] + [noisy.sigma * 1000]
        if latents:
            parts = model.embed_latents(torch.cat(latents), torch.cat(times)).split([len(part) for part in latents])
        else:  # the answer has another shape than its sources
            parts = [model.embed_latents(part, t) for part, t in zip([*conds, noisy.latents], times, strict=True)]
        prefix = model.embed_tokens(batch.prefix).float()
        for block, source, embedded in zip(batch.conds, sources, parts, strict=False):
            vision = self._vision(source, block)
            for first, rows in (
                (block.timestep, model.timestep_emb(zero)[None].expand(count, -1, -1)),
                (block.vae.start, embedded),
                (block.vit.start, vision),
            ):
                prefix = torch.cat([prefix[:, :first], rows.float(), prefix[:, first + rows.shape[1] :]], dim=1)
        image = parts[-1].shape[1]
        start = model.timestep_emb(noisy.sigma * 1000)[:, None]
        fill = rule.stretch - 1 - image
        painted = F.pad(torch.cat([start.float(), parts[-1].float()], dim=1), (0, 0, 0, fill))
        return torch.cat([prefix, painted.reshape(count, -1, painted.shape[-1])], dim=1), image

    def _vision(self, pictures: Tensor, block: CondBlock) -> Tensor:
        """The vision tower's tokens `[n, patches, hidden]` of a source."""
        config, count = self.model.config, len(pictures)
        rows, columns = block.vit.height, block.vit.width
        patches, mask = vision_patches(pictures, (rows, columns), config)
        self.vision_grid = rows, columns
        shapes = torch.tensor([[rows, columns]] * count, device=self.device)
        return self.model.embed_vision(patches, shapes, mask)

    def _rope(self, batch: Batch, rule: Rule) -> tuple[Tensor, Tensor]:
        """Cosines and sines fp32 `[n, tokens, 1, head_dim]`."""
        config, count = self.model.config, len(batch.prefix)
        height, width = batch.grid
        grids = [grid for block in batch.conds for grid in (block.vae, block.vit)]
        prefix = positions_2d(0, rule.room, grids)[None].expand(count, -1, -1).to(self.device)
        copy = positions_2d(0, rule.stretch, [Grid(1, height, width)])[None].to(self.device)
        painted = (copy + batch.length.to(self.device)[:, None, None]).repeat(1, rule.copies, 1)
        positions = torch.cat([prefix, painted], dim=1)
        cos, sin = rope_table(positions.reshape(-1, 2), config.attention_head_dim, config.rope_theta)
        return cos.view(count, rule.tokens, 1, -1), sin.view(count, rule.tokens, 1, -1)

    def _same_vision_grid(self) -> None:
        """transformers resizes the tower's positions sample by sample; in a batch of one size once is enough."""

        def resize(positional: Tensor, shapes: Tensor, max_length: int) -> Tensor:
            height, width = self.vision_grid  # as in `shapes`, without asking the device
            grid = positional.permute(2, 0, 1)[None].float()
            made = F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
            rows = made[0].flatten(1).T.to(positional.dtype)
            rows = torch.cat([rows, rows[:1].expand(max_length - len(rows), -1)])
            return rows[None].expand(len(shapes), -1, -1)

        vision: Any = self.model.vision_model
        vision.embeddings.resize_positional_embeddings = resize


@torch.no_grad()
def latents(vae: Vae, pictures: Tensor, draw: bool) -> Tensor:
    """Pictures `[n, 3, h, w]` in 0..1 to scaled latents; `draw` from the posterior as for a source, or its mean."""
    pixels = (pictures * 2 - 1)[:, :, None].to(vae.dtype)
    mean, logvar = vae.encoder(pixels).float().chunk(2, dim=1)
    if draw:
        mean = mean + (0.5 * logvar.clamp(-30, 20)).exp() * torch.randn_like(mean)
    return vae.scale(mean)[:, :, 0]


def vision_patches(pictures: Tensor, grid: tuple[int, int], config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Pictures in 0..1 as the product's `vision_input` cuts them: `[n, patches, values]` and the mask int32."""
    (rows, columns), patch, processor = grid, config.vit.patch_size, config.vit_processor
    most = processor.max_num_patches
    made = F.interpolate(pictures, (rows * patch, columns * patch), mode="bilinear", antialias=True)
    mean, std = (made.new_tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
    values = ((made * 255).round() / 255 - mean) / std
    cut = values.unflatten(2, (rows, patch)).unflatten(4, (columns, patch)).permute(0, 2, 4, 3, 5, 1)
    cut = cut.reshape(len(pictures), rows * columns, -1)
    mask = torch.zeros(len(pictures), most, dtype=torch.int32, device=pictures.device)
    mask[:, : rows * columns] = 1
    return F.pad(cut, (0, 0, 0, most - rows * columns)), mask
