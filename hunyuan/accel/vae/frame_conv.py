"""A 3D convolution over a few frames as 2D convolutions (docs/model.md, section 9: zero padding in time, kernel 3).

Output frame t is the sum over d of kernel[d] over input frame t + d - 1, where frames outside the picture are zero.
So what frame t needs are its one, two or three real neighbours: laid side by side as channels, a 2D convolution with
the kernel's slices side by side adds up exactly the same products, and none with padding in time. Knows how the
kernels are folded and which frames each call reads; norms are the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from hunyuan.accel.vae.frame_operations import channel_sums, group_affine, normalize
from hunyuan.accel.vae.frames import empty_frame

_ALIGNED = 8  # tensor cores want channels in multiples of this


@dataclass
class Frames:
    """The frames of a picture at one place of the network.

    Args:
        tensors: by index, `[1, channels, h, w]` each, channels fastest. No two share memory.
        sums: `channel_sums` over all frames; None where no norm reads them.
        offset: `[channels]` fp32, a convolution's bias that still has to be added.
    """

    tensors: dict[int, Tensor]
    sums: Tensor | None = None
    offset: Tensor | None = None

    @property
    def count(self) -> int:
        """Values per channel, over all frames; only before frames are released."""
        return len(self.tensors) * self.tensors[0].shape[2] * self.tensors[0].shape[3]


@dataclass(frozen=True)
class Call:
    """One 2D convolution: the frames it makes, the frames it reads, and where its kernel is."""

    outputs: range
    inputs: range
    kernel: int
    released: tuple[int, ...]  # inputs that no later call reads


class FrameNorm(nn.Module):
    """A GroupNorm's weights in fp32."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = constant(norm.weight.float()), constant(norm.bias.float())

    def affine(self, x: Frames) -> tuple[Tensor, Tensor]:
        """Factor and summand per channel, fp32, that normalize all frames of `x` together."""
        if x.sums is None:
            raise ValueError("these frames carry no sums to normalize by")
        return group_affine(x.sums, x.count, self.weight, self.bias, x.offset, self.groups, self.eps)


class FrameConv(nn.Module):
    """The 3x3x3 convolution `conv` over `frames` frames, in `dtype`; never adds its bias.

    Args:
        outputs: the frames to make; the others are left out.
        together: how many frames one call makes. Two frames see the same two, so a call for both wastes nothing;
            of more frames a call for several would multiply zeros.
    """

    def __init__(
        self,
        conv: nn.Conv3d,
        frames: int,
        dtype: torch.dtype,
        outputs: range | None = None,
        together: int | None = None,
    ) -> None:
        super().__init__()
        self.out_channels = conv.out_channels
        self.bias = constant(bias_of(conv))
        self.calls, patterns = plan(frames, outputs or range(frames), together or (2 if frames == 2 else 1))
        weight = conv.weight.float()
        self.kernels = nn.ParameterList(constant(packed(fold(weight, *pattern), dtype)) for pattern in patterns)

    def forward(
        self, x: Frames, call: Call, affine: tuple[Tensor, Tensor] | None, release: bool = False
    ) -> list[Tensor]:
        """The call's output frames `[1, out_channels, h, w]`, parts of one tensor.

        With `affine` the convolution reads `silu(x * scale + shift)`; with `release` each input frame is dropped
        from `x` as soon as it is copied for the last call that needs it.
        """
        window = self.window(x, call, affine)  # [1, inputs * channels, h, w]
        if release:
            for t in call.released:
                del x.tensors[t]
        out = conv2d(window, self.kernels[call.kernel], padding=1)
        stride = out.shape[1] // len(call.outputs)
        return [out[:, i * stride : i * stride + self.out_channels] for i in range(len(call.outputs))]

    def window(self, x: Frames, call: Call, affine: tuple[Tensor, Tensor] | None) -> Tensor:
        """What the call's 2D convolution reads: its input frames side by side, `[1, inputs * channels, h, w]`."""
        first = x.tensors[call.inputs[0]]
        if affine is None and len(call.inputs) == 1:
            return first
        _, channels, height, width = first.shape
        window = empty_frame(first, channels * len(call.inputs), height, width)
        for i, t in enumerate(call.inputs):
            part = window[:, i * channels : (i + 1) * channels]
            if affine is None:
                part.copy_(x.tensors[t])
            else:
                normalize(x.tensors[t], *affine, out=part, activate=True)
        return window

    def all_frames(self, x: Frames, norm: FrameNorm | None, release: bool = False) -> Frames:
        """All calls, in order: the outputs with their sums, the bias as their offset."""
        affine, made = (norm.affine(x) if norm else None), Frames({}, None, self.bias)
        for call in self.calls:
            made.tensors.update(zip(call.outputs, self(x, call, affine, release), strict=True))
        made.sums = total(channel_sums(frame) for frame in made.tensors.values())
        return made


class RepeatedFrameConv(nn.Module):
    """The 3x3x3 convolution `conv` over one picture repeated `frames` times: its slices added up, per output frame."""

    def __init__(self, conv: nn.Conv3d, frames: int, dtype: torch.dtype) -> None:
        super().__init__()
        weight = conv.weight.float()
        self.out_channels, self.bias = conv.out_channels, constant(bias_of(conv))
        self.extra = -conv.in_channels % _ALIGNED
        calls, patterns = plan(frames, range(frames), 1)
        self.order = [call.kernel for call in calls]
        summed = (fold(weight, *pattern).unflatten(1, (-1, conv.in_channels)).sum(1) for pattern in patterns)
        self.kernels = nn.ParameterList(constant(packed(pad(w, (0, 0, 0, 0, 0, self.extra)), dtype)) for w in summed)

    def forward(self, picture: Tensor) -> Frames:
        """`picture` `[1, in_channels, H, W]` to all frames, bias added."""
        picture = pad(picture, (0, 0, 0, 0, 0, self.extra)).contiguous(memory_format=torch.channels_last)
        made: dict[int, Tensor] = {}
        for t, kernel in enumerate(self.order):
            out = conv2d(picture, self.kernels[kernel], padding=1)[:, : self.out_channels]
            made[t] = out.add_(self.bias[:, None, None])
        return Frames(made, total(channel_sums(frame) for frame in made.values()))


def plan(frames: int, outputs: range, together: int) -> tuple[list[Call], list[tuple[int, int, int]]]:
    """The calls that make `outputs`, and the distinct patterns (see `fold`) of their kernels."""
    calls: list[Call] = []
    patterns: list[tuple[int, int, int]] = []
    for start in range(outputs.start, outputs.stop, together):
        made = range(start, min(start + together, outputs.stop))
        read = range(max(made.start - 1, 0), min(made.stop + 1, frames))
        last = made.stop == outputs.stop
        pattern = (read.start - made.start, len(read), len(made))
        if pattern not in patterns:
            patterns.append(pattern)
        released = tuple(t for t in read if last or t < made.stop - 1)
        calls.append(Call(made, read, patterns.index(pattern), released))
    return calls, patterns


def fold(weight: Tensor, shift: int, inputs: int, outputs: int) -> Tensor:
    """A 3D kernel as the 2D kernel from `inputs` frames to `outputs` frames.

    Args:
        weight: `[o, i, 3, 3, 3]`, time first.
        shift: the first input frame's index less the first output frame's.

    Returns:
        `[outputs * o, inputs * i, 3, 3]`: block (a, b) is the slice by which input frame b adds to output frame a;
        each frame's `o` is filled up with zeros to a multiple of 8.
    """
    rows = []
    for a in range(outputs):
        slices = [shift + b - a + 1 for b in range(inputs)]
        rows.append(
            torch.cat([weight[:, :, d] if 0 <= d <= 2 else torch.zeros_like(weight[:, :, 0]) for d in slices], 1)
        )
    aligned = [pad(row, (0, 0, 0, 0, 0, 0, 0, -row.shape[0] % _ALIGNED)) for row in rows]
    return torch.cat(aligned)


def bias_of(*convs: nn.Conv3d) -> Tensor:
    """The sum of the convolutions' biases, `[channels]` fp32."""
    biases = [conv.bias.float() for conv in convs if conv.bias is not None]
    return torch.stack(biases).sum(0)


def packed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A 2D kernel as cuDNN wants it for frames whose channels are fastest."""
    return weight.to(dtype).contiguous(memory_format=torch.channels_last)


def constant(tensor: Tensor) -> nn.Parameter:
    """A weight of its own memory, even where `tensor` is the plain form's parameter."""
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)


def total(sums: Iterable[Tensor]) -> Tensor:
    """Adds up the sums of several frames: `[2, channels]` each."""
    return torch.stack(list(sums)).sum(0)
