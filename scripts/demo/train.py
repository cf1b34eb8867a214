"""Trains the demo checkpoint, a slice of time after the other.

    python -m scripts.demo.train autoencoder --steps 2200
    python -m scripts.demo.train transformer --steps 40000 --count 96 --seconds 500

On several GPUs with `torchrun --nproc-per-node 2 -m scripts.demo.train transformer ...`; each takes `--count` samples.
Each call goes on from the state folder and says how far it is; the transformer needs a finished autoencoder. Knows the
order of things; what a step computes is in `autoencoder.py` and `transformer.py`.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hunyuan.model.vae import Vae
from scripts.demo import autoencoder, sensitivity, sizes, state, transformer, wordings
from scripts.demo.drawing import DrawnStream, Pool
from scripts.demo.optimizer import Average, Optimizer, trapezoid
from scripts.demo.pictures import SIZES, Pictures
from scripts.demo.ranks import ALONE, Ranks
from scripts.demo.sequences import Sequences, Stream
from scripts.demo.tasks import SOURCES, Family, beside_size

LOG_SECONDS, SAVE_SECONDS = 15.0, 120.0
OVER = -1.0  # instead of a learning rate
RANK_SEEDS = 1_000_003
POOL = 6
"""Drawings at hand, at least: the steps on one of them lie so far apart."""


@dataclass
class Plan:
    """How long a training is.

    Attributes:
        steps: of the whole training; the learning rate falls towards it.
        until: when this slice ends, by `time.monotonic`; earlier when all steps are done.
        last: no slice follows: the learning rate has fallen when this one ends, whatever the step.
        falling: part of the training, or of the last slice, in which the learning rate falls.
        count: samples per step.
    """

    steps: int
    until: float
    count: int
    seed: int = 0
    last: bool = False
    warm: int = 200
    falling: float = 0.45

    def over(self, step: int) -> bool:
        return step >= self.steps or time.monotonic() >= self.until

    def factor(self, step: int, fresh: int, began: float) -> float:
        """The learning rate's, at `step` of the training, `fresh` of this slice, which runs since `began`."""
        done = step / self.steps
        if self.last:
            done = max(done, (time.monotonic() - began) / (self.until - began))
        return min((fresh + 1) / self.warm, trapezoid(done, self.falling))


@dataclass
class Training:
    """Parameters on their way: optimizer, average, and what is kept between two slices."""

    name: str
    model: nn.Module
    optimizer: Optimizer
    folder: Path
    ranks: Ranks = ALONE
    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        self.average = Average([p for p in self.model.parameters() if p.requires_grad], decay=0.999)

    def resume(self) -> None:
        """Takes over the state folder's state, if there is one."""
        kept = state.load(self.folder, self.name)
        if kept is None:
            return
        self.step = kept["step"]
        with torch.no_grad():
            for name, parameter, mean in zip(self.names, self.average.parameters, self.average.values, strict=True):
                parameter.copy_(kept["parameters"][name])
                mean.copy_(kept["average"][name])

    def save(self) -> None:
        if not self.ranks.leads:
            return
        values = {
            "parameters": dict(zip(self.names, self.average.parameters, strict=True)),
            "average": dict(zip(self.names, self.average.values, strict=True)),
        }
        state.save(self.folder, self.name, {"step": self.step, **values})

    def run(self, plan: Plan, one: Callable[[], dict[str, Tensor]]) -> None:
        """Steps until the plan's steps or time are over, then saves.

        Args:
            one: forward and backward of one step; returns scalars for the progress line.
        """
        first = last_step = self.step
        ready = began = logged = saved = time.monotonic()
        while (rate := self._rate(plan, first, began)) != OVER:
            found = one()
            if self.step == first:
                began = time.monotonic()  # before this, kernels were compiled
                self._say(f"{self.name}: the first step, with what it compiles, took {began - ready:.0f} s")
            self.ranks.average(self.optimizer.parameters)
            self.optimizer.step(rate)
            self.step += 1
            self.average.update(self.step)
            for key, value in found.items():
                self.sums[key] = self.sums.get(key, 0) + value.detach()
            now = time.monotonic()
            if now - logged > LOG_SECONDS or self.step == plan.steps:
                self._log(plan, self.step - last_step, now - logged, now - began)
                logged, last_step = now, self.step
            if now - saved > SAVE_SECONDS:
                self.save()
                saved = now
        self.save()

    def _rate(self, plan: Plan, first: int, began: float) -> float:
        """The learning rate's factor for the next step, or that there is none; the same for all ranks."""
        return self.ranks.agreed(OVER if plan.over(self.step) else plan.factor(self.step, self.step - first, began))

    def _log(self, plan: Plan, steps: int, seconds: float, total: float) -> None:
        """The progress line: means since the last one."""
        rate = steps * plan.count * self.ranks.count / seconds
        means = ", ".join(f"{k} {float(v) / steps:.4f}" for k, v in self.sums.items())
        self._say(f"{self.name} {self.step}/{plan.steps} {total:.0f} s, {rate:.0f} pictures/s, {means}")
        self.sums = {}

    def _say(self, line: str) -> None:
        if self.ranks.leads:
            print(line, flush=True)


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
    device = next(vae.parameters()).device
    found = autoencoder.held_out(vae, [square(p).to(device) for p in pictures.held_photos()])
    scale = autoencoder.latent_statistics(vae, lambda: pictures.autoencoder(64, 256, 256) * 2 - 1)
    print(f"autoencoder on {len(found)} held-out photographs: {sum(found) / len(found):.2f} dB, {scale}", flush=True)
    content = {"step": step, "weights": vae.state_dict(), "scaling": 1 / scale["std"], "shift": scale["mean"]}
    state.save(folder, "autoencoder_average", content)


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
    done = state.load(args.state, "autoencoder_average")
    if done is None:
        raise SystemExit(f"{args.state} holds no autoencoder: train that first")
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    folder = args.state / f"small{ranks.rank or ''}"  # each rank writes its own
    config = sizes.write_small_files(folder, tokenizer, sizes.model_config(tokenizer, done["scaling"], done["shift"]))
    model, operations = transformer.build(config, plan.seed)
    model.to(device)
    optimizer = _optimizer(transformer.matrices_and_others(model), args)
    training = Training("transformer", model, optimizer, args.state, ranks)
    training.resume()
    seed = plan.seed + training.step + RANK_SEEDS * ranks.rank
    torch.manual_seed(seed)
    weighing = sensitivity.weighing(args.state, args.pack, config, device, ranks)
    trainee = transformer.Trainee(model, operations, plan.count, args.copies, device.type == "cuda", weighing)
    batches = iter(_loader(args, Sequences(folder, config, args.copies), plan.count, seed))
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


def _loader(args: argparse.Namespace, sequences: Sequences, count: int, seed: int) -> Iterable[bytes]:
    device = torch.device(args.device)
    stream = DrawnStream(Stream(sequences, Draws(), count, seed, args.wordings), args.pack, args.state, device)
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=args.workers,
        multiprocessing_context="spawn",
        prefetch_factor=4,
    )


def _optimizer(parameters: tuple[list[nn.Parameter], list[nn.Parameter]], args: argparse.Namespace) -> Optimizer:
    return Optimizer(*parameters, matrix_rate=args.matrix_rate, other_rate=args.other_rate)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train the demo checkpoint.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("part", choices=("autoencoder", "transformer"))
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
    parser.add_argument("--workers", type=int, default=6, help="processes that draw batches (transformer)")
    parser.add_argument("--matrix-rate", type=float, default=1.5e-3, help="learning rate of matrices (Muon)")
    parser.add_argument("--other-rate", type=float, default=1e-3, help="learning rate of all others (AdamW)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    began = time.monotonic()
    args = build_parser().parse_args(argv)
    # Worth it for one shape; the transformer's pictures have twenty, and each process would try them all.
    torch.backends.cudnn.benchmark = args.part == "autoencoder"
    torch.set_float32_matmul_precision("high")
    if args.part == "transformer" and args.workers < 1:
        raise SystemExit("--workers: at least 1; drawing in this process would share its random numbers")
    if args.part == "autoencoder" and "WORLD_SIZE" in os.environ:
        raise SystemExit("the autoencoder is trained on one GPU, without torchrun")
    if args.device == "cuda":
        args.device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"  # torchrun sets it
        torch.cuda.set_device(args.device)
    plan = Plan(args.steps, began + args.seconds, args.count, args.seed, args.last, falling=args.falling)
    {"autoencoder": train_autoencoder, "transformer": train_transformer}[args.part](args, plan)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
