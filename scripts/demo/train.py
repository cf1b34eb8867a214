"""Trains the demo checkpoint, a slice of time after the other.

    python -m scripts.demo.train autoencoder --steps 2200
    python -m scripts.demo.train transformer --steps 40000 --count 96 --seconds 500
    python -m scripts.demo.train decoder --steps 1500 --count 32

On several GPUs with `torchrun --nproc-per-node 2 -m scripts.demo.train transformer ...`; each takes `--count` samples.
Each call goes on from the state folder and says how far it is; each part needs those before it. Knows the order of
things; what a step computes is in `autoencoder.py`, `transformer.py` and `decoder.py`.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hunyuan.formats.config import CheckpointConfig
from hunyuan.model.vae import Vae
from scripts.demo import autoencoder, decoder, sensitivity, sizes, state, transformer, wordings
from scripts.demo.drawing import DrawnStream, Pool, autoencoder_of
from scripts.demo.optimizer import Optimizer
from scripts.demo.pictures import SIZES, Pictures
from scripts.demo.ranks import ALONE, Ranks
from scripts.demo.sequences import Sequences, Stream
from scripts.demo.tasks import SOURCES, Family, beside_size
from scripts.demo.training import Plan, Training

RANK_SEEDS = 1_000_003
POOL = 6
"""Drawings at hand, at least: the steps on one of them lie so far apart."""
DECODER_WORDINGS = 2
"""Steps of the decoder that each drawn batch serves: what it is to learn is in the pictures."""
RATES = {"autoencoder": (1.5e-3, 1e-3), "transformer": (1.5e-3, 1e-3), "decoder": (3e-4, 2e-4)}
"""Learning rates of matrices and of all others."""


def train_autoencoder(args: argparse.Namespace, plan: Plan) -> None:
    """One slice of the autoencoder; at its end writes `autoencoder_average`."""
    device = torch.device(args.device)
    vae = autoencoder.build(sizes.vae_config(), plan.seed).to(device)
    training = Training("autoencoder", vae, _optimizer(autoencoder.matrices_and_others(vae), args), args.state)
    training.resume()
    torch.manual_seed(plan.seed + training.step)
    pictures = Pictures(args.pack, device, plan.seed + training.step)

    drawn: list[Tensor] = []

    def one() -> dict[str, Tensor]:
        if not drawn:  # drawing takes half as long as a step: each picture is used twice, the second time on its side
            fresh = pictures.autoencoder(plan.count, 256, 256) * 2 - 1
            drawn.extend([fresh.transpose(2, 3), fresh])
        pixels = drawn.pop()
        noise = torch.randn(autoencoder.latent_shape(vae.config, pixels), device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            # Not compiled: that took 110 to 150 s on an H100, as long as half of the training.
            total, error = autoencoder.loss(vae, pixels.contiguous(), noise)
        total.backward()
        return {"loss": total, "PSNR": -10 * error.log10()}

    training.run(plan, one)
    training.average.swap()
    finish_autoencoder(vae, pictures, args.state, training.step)


def finish_autoencoder(vae: Vae, pictures: Pictures, folder: Path, step: int) -> None:
    """Prints how good the averaged autoencoder is, and writes it with its step and latents' scale."""
    scale = autoencoder.latent_statistics(vae, lambda: pictures.autoencoder(64, 256, 256) * 2 - 1)
    print(f"{held_out(vae, pictures)}, {scale}", flush=True)
    content = {"step": step, "weights": vae.state_dict(), "scaling": 1 / scale["std"], "shift": scale["mean"]}
    state.save(folder, "autoencoder_average", content)


def held_out(vae: Vae, pictures: Pictures) -> str:
    """How good an autoencoder is on pictures that it has not been trained on."""
    device = next(vae.parameters()).device
    found = autoencoder.held_out(vae, [square(p).to(device) for p in pictures.held_photos()])
    return f"autoencoder on {len(found)} held-out photographs: {sum(found) / len(found):.2f} dB"


def square(picture: Tensor) -> Tensor:
    """The middle 256x256 of a picture uint8 `[3, h, w]`, as float in 0..1."""
    _, h, w = picture.shape
    y, x = (h - 256) // 2, (w - 256) // 2
    return picture[:, y : y + 256, x : x + 256].float() / 255


class Draws:
    """What to practice, in its shares."""

    def family(self, rng: random.Random) -> tuple[Family, tuple[int, int]]:
        """A family and the size of its sources, of the answer where there are none."""
        family = rng.choices(list(wordings.FAMILY_SHARE), list(wordings.FAMILY_SHARE.values()))[0]
        height, width, _ = rng.choices(SIZES, [weight for *_, weight in SIZES])[0]
        return family, (256, 256) if family == "text" else (height, width)

    def request(self, rng: random.Random, family: Family) -> wordings.Request:
        return wordings.draw(rng, family)

    def reworded(self, rng: random.Random, request: wordings.Request) -> wordings.Request:
        return wordings.worded(rng, request.task, request.sources)

    def sources(self, family: Family) -> int:
        return SOURCES[family]

    def answer(self, family: Family, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of what is painted."""
        if family == "turn":
            return size[1], size[0]
        return beside_size(*size) if family == "beside" else size


def train_transformer(args: argparse.Namespace, plan: Plan) -> None:
    """One slice of the transformer; every rank's samples are its own."""
    device = torch.device(args.device)
    ranks = Ranks.join(device)
    folder, config, _ = _small_files(args, ranks)
    model, operations = transformer.build(config, plan.seed)
    model.to(device)
    optimizer = _optimizer(transformer.matrices_and_others(model), args)
    training = Training("transformer", model, optimizer, args.state, ranks)
    training.resume()
    seed = plan.seed + training.step + RANK_SEEDS * ranks.rank
    torch.manual_seed(seed)
    weighing = sensitivity.weighing(args.state, args.pack, config, device, ranks)
    trainee = transformer.Trainee(model, operations, plan.count, args.copies, device.type == "cuda", weighing)
    batches = iter(_loader(args, Sequences(folder, config, args.copies), seed, args.wordings))
    pool = Pool(batches, device, POOL * args.wordings, seed)

    def one() -> dict[str, Tensor]:
        waits = time.monotonic()
        drawn, batch = pool.take()
        waited = torch.tensor(1000 * (time.monotonic() - waits))
        noisy = transformer.Noisy.draw(drawn.clean, trainee.copies, drawn.guess)
        losses = trainee.losses(batch, drawn.sources, drawn.conds, noisy)
        losses.total.backward()
        drawn.guess = noisy.answer(losses.predicted, trainee.copies)
        at_start = (noisy.sigma == 1).float()  # to choose rows by it would be to wait for the GPU
        start = (losses.picture.detach() * at_start).sum() / at_start.sum().clamp(min=1)
        found = {"root": losses.root, "picture": losses.picture.mean(), "at time 1": start, "text": losses.text}
        return found | {"balance": losses.balance, "ms for pictures": waited}

    training.run(plan, one)
    pool.close()
    ranks.leave()


def train_decoder(args: argparse.Namespace, plan: Plan) -> None:
    """One slice of the decoder alone, on the transformer's answers; at its end writes `autoencoder_average` anew.

    That is all it keeps: a slice that is stopped on its way is lost, and one that follows begins with the average.
    """
    device = torch.device(args.device)
    folder, config, done = _small_files(args, ALONE)
    answering = state.load(args.state, "transformer")
    if answering is None:
        raise SystemExit(f"{args.state} holds no transformer: train that first")
    model, operations = transformer.build(config, plan.seed)
    weights = dict(model.requires_grad_(False).named_parameters())
    for name, value in answering["average"].items():
        weights[name].copy_(value)
    model.to(device)
    vae = autoencoder_of(config, args.state, device, torch.float32)
    vae.decoder.requires_grad_(True)
    training = Training("decoder", vae, _optimizer(autoencoder.matrices_and_others(vae), args), folder=None)
    training.step = state.decoder_step(done, answering["step"])
    seed = plan.seed + training.step
    torch.manual_seed(seed)
    # Not compiled: that takes as long as a third of this training.
    trainee = transformer.Trainee(model, operations, plan.count, copies=1)
    batches = iter(_loader(args, Sequences(folder, config, 1), seed, DECODER_WORDINGS, exact=True))
    pool = Pool(batches, device, POOL * DECODER_WORDINGS, seed)

    def one() -> dict[str, Tensor]:
        drawn, batch = pool.take()
        assert drawn.exact is not None
        latents, far = decoder.lesson(decoder.answers(trainee, drawn, batch), drawn.clean)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            total, error = decoder.loss(vae, latents, drawn.exact)
        total.backward()
        return {"loss": total, "PSNR": -10 * error.log10(), "far off": far.float().mean()}

    training.run(plan, one)
    pool.close()
    training.average.swap()
    print(f"on what the encoder makes, {held_out(vae, Pictures(args.pack, device, seed))}", flush=True)
    steps = {"decoder_step": training.step, "decoder_for": answering["step"]}
    state.save(args.state, "autoencoder_average", {**done, "weights": vae.state_dict(), **steps})


def _small_files(args: argparse.Namespace, ranks: Ranks) -> tuple[Path, CheckpointConfig, dict[str, Any]]:
    """The checkpoint's small files, written for the finished autoencoder, the configuration in them, and its state."""
    done = state.load(args.state, "autoencoder_average")
    if done is None:
        raise SystemExit(f"{args.state} holds no autoencoder: train that first")
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    folder = args.state / f"small{ranks.rank or ''}"  # each rank writes its own
    config = sizes.model_config(tokenizer, done["scaling"], done["shift"])
    return folder, sizes.write_small_files(folder, tokenizer, config), done


def _loader(
    args: argparse.Namespace, sequences: Sequences, seed: int, wordings: int, exact: bool = False
) -> Iterable[bytes]:
    stream = Stream(sequences, Draws(), args.count, seed, wordings)
    return DataLoader(
        DrawnStream(stream, args.pack, args.state, torch.device(args.device), exact),
        batch_size=None,
        num_workers=args.workers,
        multiprocessing_context="spawn",
        prefetch_factor=4,
    )


def _optimizer(parameters: tuple[list[nn.Parameter], list[nn.Parameter]], args: argparse.Namespace) -> Optimizer:
    matrix_rate, other_rate = RATES[args.part]
    return Optimizer(
        *parameters,
        matrix_rate=matrix_rate if args.matrix_rate is None else args.matrix_rate,
        other_rate=other_rate if args.other_rate is None else args.other_rate,
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train the demo checkpoint.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("part", choices=tuple(RATES))
    parser.add_argument(
        "--pack", type=Path, default=Path("demo_work/pack.npz"), help="pictures, from scripts.demo.pack"
    )
    parser.add_argument("--tokenizer", type=Path, default=Path("demo_work/tokenizer.json"))
    parser.add_argument("--state", type=Path, default=Path("demo_work/state"), help="what is kept between two slices")
    parser.add_argument("--steps", type=int, required=True, help="of the whole training")
    parser.add_argument(
        "--seconds",
        type=float,
        default=1e9,
        help="of this slice, counted from when the imports are done; saving at its end comes on top: leave 30 more",
    )
    parser.add_argument("--last", action="store_true", help="no slice follows: end with the learning rate at zero")
    parser.add_argument("--falling", type=float, default=0.45, help="part of it in which the learning rate falls")
    parser.add_argument("--count", type=int, default=64, help="samples per step")
    parser.add_argument("--copies", type=int, default=1, help="noisy answers per sample (transformer)")
    parser.add_argument("--wordings", type=int, default=8, help="steps that each drawn batch serves (transformer)")
    parser.add_argument("--workers", type=int, default=6, help="processes that draw batches (not the autoencoder's)")
    rates = {part: f"{matrix:g} and {other:g}" for part, (matrix, other) in RATES.items()}
    told = ", ".join(f"{both} for the {part}" for part, both in rates.items())
    parser.add_argument("--matrix-rate", type=float, help=f"learning rate of matrices (Muon); with the other {told}")
    parser.add_argument("--other-rate", type=float, help="learning rate of all others (AdamW)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    began = time.monotonic()
    args = build_parser().parse_args(argv)
    # Worth it for one shape; the transformer's pictures have twenty, and each process would try them all.
    torch.backends.cudnn.benchmark = args.part == "autoencoder"
    torch.set_float32_matmul_precision("high")
    if args.part != "autoencoder" and args.workers < 1:
        raise SystemExit("--workers: at least 1; drawing in this process would share its random numbers")
    if args.part != "transformer" and "WORLD_SIZE" in os.environ:
        raise SystemExit(f"the {args.part} is trained on one GPU, without torchrun")
    if args.device == "cuda":
        args.device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"  # torchrun sets it
        torch.cuda.set_device(args.device)
    plan = Plan(args.steps, began + args.seconds, args.count, args.seed, args.last, falling=args.falling)
    parts = {"autoencoder": train_autoencoder, "transformer": train_transformer, "decoder": train_decoder}
    parts[args.part](args, plan)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
