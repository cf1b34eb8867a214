"""Keeps count of what was compared: nothing recorded may go uncompared without being named.

Knows values and tolerances, not what they mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    rtol: float = 0.0
    atol: float = 0.0

    @classmethod
    def parse(cls, raw: Any, default: Tolerance) -> Tolerance:
        """From a manifest entry: a mapping, or words that name rtol or atol."""
        if isinstance(raw, Mapping):
            return cls(raw.get("rtol", 0.0), raw.get("atol", 0.0)) if "rtol" in raw or "atol" in raw else default
        found = dict(re.findall(r"(rtol|atol) ([0-9.]+(?:e-?[0-9]+)?)", raw or ""))
        return cls(float(found.get("rtol", 0)), float(found.get("atol", 0))) if found else default

    def __str__(self) -> str:
        return f"rtol {self.rtol:g} atol {self.atol:g}"


EXACT = Tolerance()


@dataclass
class Check:
    """One section's comparison.

    Attributes:
        present: the names of everything recorded.
        tolerance: the section's own.
        left_out: names not compared, with the reason.
    """

    section: str
    present: list[str]
    tolerance: Tolerance
    compared: set[str] = field(default_factory=set)
    left_out: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    largest: float = 0.0

    def close(self, name: str, ours: Tensor, theirs: Tensor | None, tolerance: Tolerance | None = None) -> None:
        """Elementwise within `atol + rtol * |theirs|`; nothing to do where a folder did not record the tensor."""
        if name not in self.present or theirs is None:
            return
        tolerance = tolerance or self.tolerance
        self.compared.add(name)
        ours, theirs = ours.detach().cpu(), theirs.cpu()
        if tuple(ours.shape) != tuple(theirs.shape):
            self.failures.append(f"{name}: shape {tuple(ours.shape)}, recorded {tuple(theirs.shape)}")
            return
        error = (ours.double() - theirs.double()).abs()
        self.largest = max(self.largest, float(error.max()) if error.numel() else 0.0)
        bad = ~(error <= tolerance.atol + tolerance.rtol * theirs.double().abs())
        if bad.any():
            self.failures.append(f"{name}: {int(bad.sum())} of {bad.numel()} off, largest error {error.max():.3g}")

    def exact(self, name: str, ours: Any, theirs: Any) -> None:
        """Equal values: tensors, numbers, lists or text; nothing to do where a folder did not record it."""
        if name not in self.present:
            return
        self.compared.add(name)
        if isinstance(theirs, Tensor):
            equal = torch.equal(torch.as_tensor(ours).cpu().to(theirs.dtype), theirs)
        else:
            equal = ours == theirs
        if not equal:
            self.failures.append(f"{name}: {_short(ours)}, recorded {_short(theirs)}")

    def without_input(self, names: Iterable[str], given: str) -> None:
        """What cannot be computed because the folder holds neither that input nor its seed."""
        self.leave_out((name for name in names if name in self.present), f"{given} is not in the folder")

    def used(self, *names: str) -> None:
        """Recorded inputs that our code was fed."""
        self.compared.update(names)

    def leave_out(self, names: Iterable[str], reason: str) -> None:
        self.left_out.update((name, reason) for name in names if name not in self.compared)

    def finish(self) -> Check:
        """Whatever was neither compared nor left out by name is a failure."""
        forgotten = [n for n in self.present if n not in self.compared and n not in self.left_out]
        if forgotten:
            self.failures.append(f"not compared: {', '.join(forgotten)}")
        return self

    def line(self) -> str:
        done = sum(name in self.compared for name in self.present)
        verdict = "FAIL" if self.failures else ("ok" if done else "left out")
        error = f"largest error {self.largest:.2e}, tolerance {self.tolerance}"
        return f"{verdict:8} {self.section:45} {done:3} of {len(self.present):3} compared, {error}"


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
