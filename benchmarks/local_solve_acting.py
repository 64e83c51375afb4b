"""One acting query: every action's corrected value from its own support set, on one thread, against a bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from local_solve_problem import distance, matern32
from local_solve_records import Record

from skrl import ResidualHead

ACTIONS, CAPACITY, DIM, K = 4, 1000, 8, 16
BAR_US = 100.0
REPEATS = 50
TOLERANCE = 1e-5


def measure(rounds: int, commit: str) -> list[Record]:
    """Time a head's forward pass and its correction alone, after comparing them with dense solves in float64.

    Args:
        rounds: samples of 50 calls; the median counts.
        commit: what is measured.
    """
    head, queries = _filled_head()
    prior = torch.zeros(1, ACTIONS)
    calls: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "head": lambda query: head(query, prior),
        "correction": head.correction,
    }
    expected = {"mean": _dense_corrections(head, queries)}
    records = []
    for name, call in calls.items():
        with torch.no_grad():
            found = torch.cat([call(query) for query in torch.split(queries, 1)])
            error = distance({"mean": found.numpy()}, expected, np.ones(len(queries), dtype=bool))
            microseconds = 1e6 * _seconds(call, queries, rounds)
        records.append(
            Record(
                *("acting", name, 1, K, ACTIONS * CAPACITY, DIM, "float32"),
                status="ok" if error is not None and error <= TOLERANCE else "failed",
                commit=commit,
                threads=torch.get_num_threads(),
                compared_queries=len(queries),
                our_error=error,
                our_us=microseconds,
                rival_us=BAR_US,
                ratio=BAR_US / microseconds,
                rounds=rounds,
                note="the bar stands in the rival's place",
            )
        )
    return records


def _filled_head() -> tuple[ResidualHead, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    head = ResidualHead(actions=ACTIONS, capacity=CAPACITY, feature_dim=DIM, k=K)
    features = torch.randn(ACTIONS, CAPACITY, DIM, generator=generator)
    targets = torch.randn(ACTIONS, CAPACITY, 1, generator=generator)
    head.memory.write(features, torch.full((ACTIONS,), CAPACITY), targets)
    queries = torch.randn(64, DIM, generator=generator)
    nearest = torch.cdist(queries, features[0]).topk(K, largest=False).values
    head.lengthscale.fill_(2.0 * float(nearest[:, -1].median()))
    return head, queries


def _dense_corrections(head: ResidualHead, queries: torch.Tensor) -> np.ndarray:
    """Ridge regression on the K nearest points of every action, bounded by their residuals and zero, [B, A]."""
    features, targets = (values.double().numpy() for values in (head.memory.features, head.memory.targets[..., 0]))
    lengthscale = float(head.lengthscale)
    corrections = np.empty((len(queries), ACTIONS))
    for row, query in enumerate(queries.double().numpy()):
        for action in range(ACTIONS):
            nearest = np.argsort(np.square(features[action] - query).sum(-1))[:K]
            points, residuals = features[action, nearest], targets[action, nearest]
            gram = matern32(np.linalg.norm(points[:, None] - points, axis=-1) / lengthscale)
            cross = matern32(np.linalg.norm(points - query, axis=-1) / lengthscale)
            value = cross @ np.linalg.solve(gram + head.ridge * np.eye(K), residuals)
            corrections[row, action] = np.clip(value, min(residuals.min(), 0.0), max(residuals.max(), 0.0))
    return corrections


def _seconds(call: Callable[[torch.Tensor], torch.Tensor], queries: torch.Tensor, rounds: int) -> float:
    """Median over the rounds of the mean seconds of a call, another query each time."""
    batches = torch.split(queries, 1)
    samples = []
    for _ in range(rounds):
        started = time.perf_counter()
        for index in range(REPEATS):
            call(batches[index % len(batches)])
        samples.append((time.perf_counter() - started) / REPEATS)
    return median(samples)
