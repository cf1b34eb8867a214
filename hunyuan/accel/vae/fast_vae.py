"""The autoencoder for a GPU: the plain form's numbers from 2D convolutions in 16 bit (docs/model.md, section 9).

Built once from a loaded `Vae`, whose weights it copies into its own form, and used in its place. One picture becomes
four frames inside the decoder, and its encoder sees it four times, so time cannot be dropped: all frames reach the
output through the norms, whose statistics are over all of them. What is dropped is every product with padding in time,
and of the last convolution every frame but the last. Knows nothing of checkpoints and draws no random numbers.

Precision: convolutions in the dtype given, accumulated in fp32 by cuDNN; norms, SiLU, biases and sums of branches are
fp32 inside and rounded once when stored. fp16 ends at 65504, and only the residual stream and the convolutions that
read it bare (those that change the resolution, and shortcuts) are not bounded by a norm. The official code runs the
same weights under fp16 autocast (`vae_autocast_dtype`), so it has the same bounds at the same places; a result that is
not finite is refused here rather than painted black.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, scaled_dot_product_attention

from hunyuan.accel.vae.frame_conv import (
    FrameConv,
    FrameNorm,
    Frames,
    RepeatedFrameConv,
    bias_of,
    constant,
    packed,
    total,
)
from hunyuan.accel.vae.frame_operations import add_residual, depth_to_space, normalize, space_to_depth
from hunyuan.accel.vae.frames import empty_frame
from hunyuan.errors import HunyuanError
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.vae import (
    AttnBlock,
    Decoder,
    Downsample,
    Encoder,
    LatentScale,
    Level,
    Middle,
    Posterior,
    ResnetBlock,
    Upsample,
    Vae,
)


def use_fast_vae(model: HunyuanImage3) -> None:
    """On a GPU replaces the loaded network's autoencoder by its fast form, which computes in fp16 where it was bf16.

    Elsewhere leaves the plain form. Both sets of weights exist while the fast one is built; afterwards the plain one is
    free. An fp32 autoencoder stays fp32.
    """
    if model.device.type == "cuda":
        dtype = torch.float16 if model.vae.dtype == torch.bfloat16 else model.vae.dtype
        model.add_module("vae", FastVae(model.vae, dtype))


class CheckedPosterior(Posterior):
    """Looked at when it is sampled, not before: asking a GPU is waiting for it, and it may be given more work first."""

    def sample(self, noise: Tensor) -> Tensor:
        """`noise` is standard normal, of mean's shape.

        Raises:
            HunyuanError: the mean or the variance is not finite.
        """
        return _finite(super().sample(noise))


class FastVae(LatentScale):
    """Stands in for `Vae`: the same methods, results in fp32. Holds no reference to `plain`."""

    def __init__(self, plain: Vae, dtype: torch.dtype) -> None:
        super().__init__(plain.config)
        self.encoder = FastEncoder(plain.encoder, self.config.ffactor_temporal, dtype)
        self.decoder = FastDecoder(plain.decoder, dtype)

    @property
    def dtype(self) -> torch.dtype:
        """What the convolutions compute in."""
        return self.decoder.conv_in.kernels[0].dtype

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Posterior:
        """`pixels` `[n, 3, H, W]` in -1..1 to the posterior `[n, channels, 1, h, w]`, fp32.

        Does not wait for a GPU. What is not finite is refused when the posterior is sampled.

        Raises:
            ValueError: `pixels` has another number of dimensions.
        """
        _check_shape(pixels, "pixels")
        moments = torch.cat([self.encoder(one.to(self.dtype)) for one in pixels.split(1)])
        mean, logvar = moments[:, :, None].chunk(2, dim=1)  # [n, channels, 1, h, w] each
        # Clamping would hide an infinity; NaN passes it, and reaches the sample.
        return CheckedPosterior(mean, logvar.where(logvar.isfinite(), torch.nan).clamp(-30, 20))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Unscaled latents `[n, channels, h, w]` to pixels `[n, 3, H, W]`, fp32, about -1..1.

        Raises:
            ValueError: `z` has another number of dimensions, such as several latent frames.
            HunyuanError: the result is not finite.
        """
        _check_shape(z, "latents")
        return _finite(torch.cat([self.decoder(one.to(self.dtype)) for one in z.split(1)]))


class FastResnetBlock(nn.Module):
    """Owns the frames it is given: their memory becomes the result's, or is released."""

    def __init__(self, plain: ResnetBlock, frames: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm1, self.conv1 = FrameNorm(plain.norm1), FrameConv(plain.conv1, frames, dtype)
        self.norm2, self.conv2 = FrameNorm(plain.norm2), FrameConv(plain.conv2, frames, dtype)
        self.shortcut, bias = None, bias_of(plain.conv2)
        if hasattr(plain, "nin_shortcut"):
            self.shortcut = constant(packed(plain.nin_shortcut.weight[:, :, 0], dtype))  # [out, in, 1, 1]
            bias = bias_of(plain.conv2, plain.nin_shortcut)
        self.bias = constant(bias)

    def forward(self, x: Frames) -> Frames:
        h = self.conv1.all_frames(x, self.norm1)
        if self.shortcut is not None:
            for t in x.tensors:
                x.tensors[t] = conv2d(x.tensors[t], self.shortcut)
        affine, sums = self.norm2.affine(h), []
        for call in self.conv2.calls:
            made = self.conv2(h, call, affine, release=True)
            sums += [add_residual(x.tensors[t], made[i], self.bias) for i, t in enumerate(call.outputs)]
            del made  # or it would live on while the next call's input is laid out
        return Frames(x.tensors, total(sums))


class FastAttnBlock(nn.Module):
    """Attention over the places of the only frame there is in the middle. Owns its input, as all blocks do."""

    def __init__(self, plain: AttnBlock, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = FrameNorm(plain.norm)
        three = (plain.q, plain.k, plain.v)
        self.qkv = constant(torch.cat([f.weight.flatten(1) for f in three]).to(dtype))  # [3 * channels, channels]
        self.qkv_bias = constant(torch.cat([bias_of(f) for f in three]).to(dtype))
        self.proj_out = constant(plain.proj_out.weight.flatten(1).to(dtype))
        self.bias = constant(bias_of(plain.proj_out))

    def forward(self, x: Frames) -> Frames:
        frame = x.tensors[0]
        _, channels, height, width = frame.shape
        h = empty_frame(frame, channels, height, width)
        normalize(frame, *self.norm.affine(x), out=h, activate=False)
        tokens = h.permute(0, 2, 3, 1).reshape(1, 1, height * width, channels)
        q, k, v = linear(tokens, self.qkv, self.qkv_bias).chunk(3, dim=-1)  # [1, 1, height * width, channels]
        out = linear(scaled_dot_product_attention(q, k, v), self.proj_out)
        out = out.view(1, height, width, channels).permute(0, 3, 1, 2)
        return Frames({0: frame}, add_residual(frame, out, self.bias))


class FastMiddle(nn.Module):
    def __init__(self, plain: Middle, dtype: torch.dtype) -> None:
        super().__init__()
        self.block_1 = FastResnetBlock(plain.block_1, 1, dtype)
        self.attn_1 = FastAttnBlock(plain.attn_1, dtype)
        self.block_2 = FastResnetBlock(plain.block_2, 1, dtype)

    def forward(self, x: Frames) -> Frames:
        return self.block_2(self.attn_1(self.block_1(x)))


class FastDownsample(nn.Module):
    """Space to depth of convolution plus shortcut.

    The shortcut averages neighbouring channels after space to depth. The groups never cross from one place of the
    square to the next (inputs = group * outputs / factor), so it is taken before, where it is small.
    """

    def __init__(self, conv: nn.Conv3d, t: int, frames: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.t, self.conv = t, FrameConv(conv, frames, dtype)

    def forward(self, x: Frames) -> Frames:
        channels, made = self.conv.out_channels, Frames({})
        sums: dict[int, list[Tensor]] = {}
        for call in self.conv.calls:
            for t, y in zip(call.outputs, self.conv(x, call, None), strict=True):
                frame, part = divmod(t, self.t)
                if part == 0:
                    shape = (4 * self.t * channels, y.shape[2] // 2, y.shape[3] // 2)
                    made.tensors[frame], sums[frame] = empty_frame(y, *shape), []
                out = made.tensors[frame][:, 4 * part * channels : 4 * (part + 1) * channels]
                sums[frame].append(space_to_depth(y, self.conv.bias, x.tensors[t], out))
        made.sums = total(torch.cat(parts, dim=1) for parts in sums.values())
        return made


class FastUpsample(nn.Module):
    """Depth to space of convolution plus repeated channels."""

    def __init__(self, conv: nn.Conv3d, t: int, frames: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.t, self.conv = t, FrameConv(conv, frames, dtype)

    def forward(self, x: Frames) -> Frames:
        made, sums = Frames({}), []
        for call in self.conv.calls:
            deep = self.conv(x, call, None)
            for t, y in zip(call.outputs, deep, strict=True):
                for i in range(self.t):
                    shape = (self.conv.out_channels // (4 * self.t), 2 * y.shape[2], 2 * y.shape[3])
                    out = empty_frame(y, *shape)
                    sums.append(depth_to_space(y, self.conv.bias, x.tensors[t], out, i))
                    made.tensors[t * self.t + i] = out
            del deep, y
        made.sums = total(sums)
        return made


class FastLevel(nn.Module):
    """`frames` go in; `self.frames` come out."""

    def __init__(self, plain: Level, frames: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.block = nn.ModuleList(FastResnetBlock(block, frames, dtype) for block in plain.block)  # type: ignore[arg-type]
        self.resample: FastDownsample | FastUpsample | None = None
        self.frames = frames
        down: Downsample | None = getattr(plain, "downsample", None)
        up: Upsample | None = getattr(plain, "upsample", None)
        if down is not None:
            self.resample, self.frames = FastDownsample(down.conv, down.t, frames, dtype), frames // down.t
        elif up is not None:
            self.resample, self.frames = FastUpsample(up.conv, up.t, frames, dtype), frames * up.t

    def forward(self, x: Frames) -> Frames:
        for block in self.block:
            x = block(x)
        return self.resample(x) if self.resample else x


class FastEncoder(nn.Module):
    def __init__(self, plain: Encoder, frames: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.moments = plain.moments
        self.conv_in = RepeatedFrameConv(plain.conv_in, frames, dtype)
        self.down = nn.ModuleList()
        for level in plain.down:
            fast = FastLevel(level, frames, dtype)  # type: ignore[arg-type]
            frames = fast.frames
            self.down.append(fast)
        if frames != 1:
            raise ValueError(f"the encoder's middle needs one frame, not {frames}")
        self.mid = FastMiddle(plain.mid, dtype)
        self.norm_out, self.conv_out = FrameNorm(plain.norm_out), FrameConv(plain.conv_out, 1, dtype)

    def forward(self, picture: Tensor) -> Tensor:  # [1, 3, H, W] -> [1, 2 * latent, H / 16, W / 16], fp32
        x = self.conv_in(picture)
        for level in self.down:
            x = level(x)
        x = self.mid(x)
        (out,) = self.conv_out(x, self.conv_out.calls[0], self.norm_out.affine(x))
        averaged = x.tensors[0].unflatten(1, (self.moments, -1)).mean(2, dtype=torch.float32)
        return out.float() + self.conv_out.bias[:, None, None] + averaged


class FastDecoder(nn.Module):
    def __init__(self, plain: Decoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.repeats, frames = plain.repeats, 1
        self.conv_in, self.mid = FrameConv(plain.conv_in, frames, dtype), FastMiddle(plain.mid, dtype)
        self.up = nn.ModuleList()
        for level in plain.up:
            fast = FastLevel(level, frames, dtype)  # type: ignore[arg-type]
            frames = fast.frames
            self.up.append(fast)
        self.norm_out = FrameNorm(plain.norm_out)
        self.conv_out = FrameConv(plain.conv_out, frames, dtype, outputs=range(frames - 1, frames))

    def forward(self, z: Tensor) -> Tensor:  # [1, latent, h, w] -> [1, 3, 16 * h, 16 * w], fp32
        z = z.contiguous(memory_format=torch.channels_last)
        (start,) = self.conv_in(Frames({0: z}), self.conv_in.calls[0], None)
        repeated = z.repeat_interleave(self.repeats, dim=1).contiguous(memory_format=torch.channels_last)
        sums = add_residual(start, repeated, self.conv_in.bias)
        x = self.mid(Frames({0: start}, sums))
        for level in self.up:
            x = level(x)
        (out,) = self.conv_out(x, self.conv_out.calls[0], self.norm_out.affine(x), release=True)
        return out.float() + self.conv_out.bias[:, None, None]


def _check_shape(x: Tensor, what: str) -> None:
    if x.dim() != 4:
        raise ValueError(f"{what} must be [n, channels, height, width], one frame each, not {tuple(x.shape)}")


def _finite(x: Tensor) -> Tensor:
    if not x.isfinite().all():
        raise HunyuanError("the autoencoder's result is not finite; its values may have left the range of 16 bit")
    return x
