"""The search of :func:`skrl.tuning.tune`: a coarse grid on a few probes for every k, then ever finer stencils.

The loss is a long flat valley with rounding at its far end. So among settings that the probes cannot tell apart the
search takes the largest ridge and the smallest k, after the one-standard-error rule of Hastie, Tibshirani and Friedman,
*The Elements of Statistical Learning* (2009), section 7.10.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from skrl.shapes import Float, Tensor
from skrl.tuning.leave_one_out import COARSE_PROBES, Objective, probe_losses
from skrl.tuning.probes import Probes

COARSE_STEPS = (8, 12)
"""Distance of the coarse grid's points, in smallest steps of lengthscale and ridge."""

STANDARD_ERRORS = 0.5
"""Settings whose mean loss exceeds the least by at most this many standard errors of the difference count as equal."""

Position = tuple[int, int]
"""A lengthscale and a ridge, in smallest steps from the defaults."""


class Axis(NamedTuple):
    """Values ``base · step^i`` for whole i from ``low`` to ``high``: one value when both are zero."""

    base: float
    step: float = 1.0
    low: int = 0
    high: int = 0

    def value(self, position: int) -> float:
        """Value at a position."""
        return self.base * self.step**position

    def spaced(self, distance: int) -> range:
        """Positions ``distance`` apart, from the highest down."""
        return range(self.high, self.low - 1, -distance)

    def around(self, position: int, distance: int) -> list[int]:
        """A position and those ``distance`` away, moved onto the axis."""
        return sorted({min(max(position + move, self.low), self.high) for move in (-distance, 0, distance)})


class Sweep:
    """Search among the positions of a grid, at each of which the losses are computed once.

    Args:
        probes: supports whose losses count.
        lengthscales: ℓ, in units of the probes' points.
        ridges: λ.
        objective: "error" or "likelihood".
    """

    def __init__(self, probes: Probes, lengthscales: Axis, ridges: Axis, objective: Objective) -> None:
        self.probes, self.lengthscales, self.ridges, self.objective = probes, lengthscales, ridges, objective
        self._known: dict[tuple[int, Position], Tensor] = {}

    def settings(self, candidates: list[int], rounds: int) -> tuple[int, Position]:
        """The best of ascending candidates for k, and its best position: all on few probes, the winner on all.

        Args:
            candidates: k.
            rounds: stencils per refinement.
        """
        few = len(self.probes.rows) <= COARSE_PROBES
        coarse = self if few else self._on(self.probes.thinned(COARSE_PROBES))
        i_step, j_step = COARSE_STEPS
        grid = [(i, j) for i in self.lengthscales.spaced(i_step) for j in self.ridges.spaced(j_step)]
        regions = {k: coarse.refine(k, grid, (i_step // 2, j_step // 2), rounds) for k in candidates}
        losses = torch.cat([self.losses(k, [position]) for k, position in regions.items()])
        k = candidates[min(_equally_good(losses))]
        return k, regions[k] if few else self.refine(k, [regions[k]], (i_step // 4, j_step // 4), rounds)

    def refine(self, k: int, start: list[Position], steps: tuple[int, int], rounds: int) -> Position:
        """Walk from the best of the starting positions downhill, by stencils of 3 × 3.

        Args:
            k: neighbours per prediction.
            start: where to look first.
            steps: distance of a stencil's positions; halved whenever its centre is the best.
            rounds: stencils at most.

        Returns:
            Of all positions seen, as good as the best, that of the largest ridge.
        """
        seen = dict.fromkeys(start)
        centre = self._best(k, start)
        for _ in range(rounds):
            around = zip((self.lengthscales, self.ridges), centre, steps, strict=True)
            columns, rows = (axis.around(position, step) for axis, position, step in around)
            stencil = [(i, j) for i in columns for j in rows]
            seen.update(dict.fromkeys(stencil))
            before, centre = centre, self._best(k, stencil)
            if centre == before:
                if steps == (1, 1):
                    break
                steps = max(1, steps[0] // 2), max(1, steps[1] // 2)
        i, j = self._cautious(k, list(seen))
        # Where the loss is level in the ridge, the stencils have seen only a part of the plateau.
        seen.update(dict.fromkeys((i, above) for above in self.ridges.spaced(COARSE_STEPS[1] // 2) if above > j))
        return self._cautious(k, list(seen))

    def losses(self, k: int, positions: list[Position]) -> Float[Tensor, "positions probes"]:
        """Loss of every probe at every position, [n, P], on the CPU."""
        missing: dict[int, list[int]] = {}
        for i, j in positions:
            if (k, (i, j)) not in self._known:
                missing.setdefault(i, []).append(j)
        prior = self.probes.kernel.prior_variance
        for i, rows in missing.items():
            ridges = [self.ridges.value(j) for j in rows]
            predictions = self.probes.predictions(self.lengthscales.value(i), ridges, k)
            for j, ridge, prediction in zip(rows, ridges, predictions, strict=True):
                self._known[k, (i, j)] = probe_losses(prediction, self.probes.targets, ridge, prior, self.objective)
        # One transfer for all of them, and sums of differences that rounding does not decide.
        return torch.stack([self._known[k, position] for position in positions]).cpu().double()

    def _cautious(self, k: int, positions: list[Position]) -> Position:
        """Of the positions as good as the best the one of largest ridge, and of smallest loss among those."""
        losses = self.losses(k, positions)
        means = losses.mean(1).tolist()
        return positions[max(_equally_good(losses), key=lambda n: (positions[n][1], -means[n]))]

    def _on(self, probes: Probes) -> Sweep:
        return Sweep(probes, self.lengthscales, self.ridges, self.objective)

    def _best(self, k: int, positions: list[Position]) -> Position:
        return positions[int(self.losses(k, positions).mean(1).argmin())]


def _equally_good(losses: Tensor) -> list[int]:
    """Candidates, [n, P], whose mean exceeds the least by no more than the probes can tell."""
    gaps = losses - losses[losses.mean(1).argmin()]
    slack = STANDARD_ERRORS * gaps.std(1, correction=0) / math.sqrt(losses.shape[1])
    return [n for n, (gap, limit) in enumerate(zip(gaps.mean(1).tolist(), slack.tolist(), strict=True)) if gap <= limit]
