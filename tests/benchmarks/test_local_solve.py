"""The speed benchmark: equality that can fail, fair timing, ratios by hand, and a grid that resumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import local_solve
import local_solve_timing
import numpy as np
import pytest
from local_solve_acting import measure as measure_acting
from local_solve_contenders import OurPrediction
from local_solve_duel import Duel
from local_solve_problem import Problem, distance, matern32
from local_solve_records import Cell, Record, append, read, to_csv
from local_solve_report import Run, markdown, summarise
from local_solve_rivals import RIVALS, NumpySolve
from local_solve_worker import Job, records

PAIRS = [(part, name) for part, rivals in RIVALS.items() for name in rivals]
CELL = Cell(batch=3, neighbors=5, points=90, dim=3)


def job(part: str, rival: str, path: Path, precisions: tuple[str, ...] = ("float64", "float32")) -> Job:
    todo = [(precision, CELL) for precision in precisions]
    return Job(part, rival, todo, rounds=2, seconds=0.01, threads=1, results=str(path), commit="abc")


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem(90, 3, 5)


class Liar(NumpySolve):
    """Off by a little more than rounding."""

    error = 1e-8

    def __call__(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, variance = super().__call__(queries)
        return mean + 2 * self.error, variance


class Crash(NumpySolve):
    """Works for small batches."""

    def __call__(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(queries) > 8:
            raise MemoryError("too many queries\nand a second line")
        return super().__call__(queries)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the rivals, which use what torch and numpy deprecate
@pytest.mark.parametrize(("part", "name"), PAIRS)
def test_every_rival_gives_our_numbers(part: str, name: str, tmp_path: Path) -> None:
    rival = RIVALS[part][name]
    if local_solve.is_missing(rival):
        pytest.skip(f"{', '.join(rival.requires)} not installed: pip install -e '.[bench]'")
    if rival.one_process_per_precision:
        (path := tmp_path / "cells.csv").write_text(to_csv([]))
        for precision in rival.precisions:
            assert local_solve.start(job(part, name, path, (precision,)), rival.environment(precision))
        found = read(path)
    else:
        found = list(records(job(part, name, tmp_path / "unused", rival.precisions)))
    assert [(r.status, r.cell, r.commit) for r in found] == [("ok", CELL, "abc")] * len(rival.precisions), found
    timed = next(record for record in found if record.precision == "float32")
    assert timed.our_us is not None
    assert timed.rival_us is not None
    assert timed.ratio == pytest.approx(timed.rival_us / timed.our_us, rel=1e-3)
    assert timed.rounds == 2
    if part != "gradient":
        assert timed.our_error is not None
        assert timed.our_error <= 1e-5


@pytest.mark.parametrize("ours", [False, True])
def test_a_wrong_answer_fails(ours: bool, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    class OurLie(OurPrediction):
        def answer(self, output: Any) -> dict[str, np.ndarray]:
            return {"mean": output.mean.numpy() + 4e-5, "variance": output.variance.numpy()}

    monkeypatch.setitem(RIVALS["predict"], "liar", Liar)
    duel = Duel("predict", "liar", problem, 5, "float64")
    if ours:
        duel = Duel("predict", "numpy", problem, 5, "float32")
        duel.ours = OurLie()
        duel._fit(duel.ours)
    record, _ = duel.compare(Record("predict", "liar", *CELL, duel.precision, "ok", "abc", 1))
    assert record.status == "failed"
    assert ("ours from the dense solution" in record.note) == ours
    assert ("ours from the rival" in record.note) != ours


def test_a_rival_that_raises_is_recorded_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RIVALS["predict"], "crash", Crash)
    work = job("predict", "crash", Path("unused"))
    cells = [Cell(16, 5, 90, 3), Cell(2, 5, 90, 3), Cell(2, 4, 90, 3)]
    found = list(records(replace(work, todo=[("float64", cell) for cell in cells])))
    assert {record.cell: record.status for record in found} == {cells[0]: "error", cells[1]: "ok", cells[2]: "ok"}
    assert [record.note for record in found if record.status == "error"] == ["MemoryError: too many queries"]


def test_queries_between_two_equally_near_points_are_not_compared(problem: Problem) -> None:
    rows = np.arange(40)
    assert problem.nearest(rows).separated(5).all()
    tied = Problem(90, 3, 5)
    tied.features[1::2] = tied.features[::2]
    assert not tied.nearest(rows).separated(5).any()
    assert tied.nearest(rows).separated(4).all()
    duel = Duel("predict", "numpy", tied, 5, "float64")
    record, _ = duel.compare(Record("predict", "numpy", *CELL, "float64", "ok", "abc", 1))
    assert (record.status, record.compared_queries) == ("failed", 0)


def test_the_dense_solution_is_ridge_regression_on_the_nearest_points(problem: Problem) -> None:
    settings = problem.settings(5)
    queries, features = (values.astype(np.float64) for values in (problem.queries, problem.features))
    found = problem.solution(np.array([7, 0]), settings)
    for at, row in enumerate((7, 0)):
        order = np.argsort(np.linalg.norm(features - queries[row], axis=1))[:5]
        points = features[order]
        pairs = np.array([[np.linalg.norm(a - b) for b in points] for a in points])
        cross = matern32(np.linalg.norm(points - queries[row], axis=1) / settings.lengthscale)
        inverse = np.linalg.inv(matern32(pairs / settings.lengthscale) + settings.ridge * np.eye(5))
        assert found["mean"][at] == pytest.approx(cross @ inverse @ problem.targets[order], rel=1e-6)
        assert found["variance"][at] == pytest.approx(1 - cross @ inverse @ cross, rel=1e-9)
        assert set(found["indices"][at]) == set(order)
    assert matern32(np.array([0.0, 1.0])) == pytest.approx([1.0, (1 + 3**0.5) * np.exp(-(3**0.5))])


def test_distance_of_answers() -> None:
    rows = np.array([True, False, True])
    right = {"mean": np.array([1.0, 2.0, -3.0]), "indices": np.arange(6).reshape(3, 2)}
    wrong = {"mean": np.array([1.0, 9.0, -3.4]), "variance": np.zeros(3)}
    assert distance(wrong, right, rows) == pytest.approx(0.4 / 4.0)
    assert distance({"mean": np.array([np.nan, 2.0, -3.0])}, right, rows) == np.inf
    assert distance({"indices": np.array([[0, 1], [9, 9], [4, 5]])}, right, rows) == 0.0
    assert distance({"indices": np.array([[0, 2], [2, 3], [4, 5]])}, right, rows) == np.inf
    assert distance({"variance": np.zeros(3)}, right, rows) is None
    assert distance(right, right, np.zeros(3, dtype=bool)) is None
    assert distance({"feature_gradient": np.ones(5)}, {"feature_gradient": np.ones(5)}, rows) == 0.0


def test_both_sides_take_turns_and_medians_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = [0.0], []

    def side(name: str, seconds: list[float], extra: float = 0.0) -> Callable[[int], float]:
        def call(index: int) -> float:
            clock[0] += seconds[min(log.count(name), len(seconds) - 1)]
            log.append(name)
            return extra

        return call

    monkeypatch.setattr(local_solve_timing.time, "perf_counter", lambda: clock[0])
    ours, rival = side("ours", [0.3, 9.0, 0.5]), side("rival", [1.0, 2.0, 3.0], extra=10.0)
    times = local_solve_timing.interleave(ours, rival, rounds=4, seconds=60.0, earlier=(0.4, 12.5))
    assert log == ["rival", "ours"] * 3
    assert times == local_solve_timing.Times(ours=pytest.approx(0.45), rival=pytest.approx(12.25), rounds=4)
    log.clear()
    times = local_solve_timing.interleave(ours, rival, rounds=9, seconds=0.0, earlier=(0.4, 12.5))
    assert (times.rounds, len(log)) == (2, 2)


def test_short_calls_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []

    def call(index: int) -> float:
        clock[0] += 0.001
        calls.append(index)
        return 0.0

    monkeypatch.setattr(local_solve_timing.time, "perf_counter", lambda: clock[0])
    with pytest.raises(ValueError, match="rounds are 0, but must be at least 1"):
        local_solve_timing.interleave(call, call, rounds=0, seconds=60.0, earlier=(0.001, 0.001))
    times = local_solve_timing.interleave(call, call, rounds=3, seconds=60.0, earlier=(0.001, 0.001))
    assert times.ours == times.rival == pytest.approx(0.001)
    pilots, untimed, timed = 2, 3 * 2, 3 * 2 * 4
    assert len(calls) == pilots + untimed + timed


def made_up(part: str, rival: str, ratio: float, points: int = 10_000, dim: int = 64, batch: int = 1) -> Record:
    times = {"our_us": 10.0, "rival_us": 10.0 * ratio, "ratio": ratio, "our_fit_ms": 1.0, "rival_fit_ms": 4.0}
    return Record(part, rival, batch, 8, points, dim, "float32", "ok", "abc", 2, **times)


def test_ratios_by_hand() -> None:
    found = summarise([0.5, 1.0, 4.0, 32.0])
    assert found.geometric_mean == pytest.approx(64.0**0.25)
    assert (found.least, found.most, found.ahead, found.cells) == (0.5, 32.0, 3, 4)
    assert summarise([0.5, 1.0, 4.0, 32.0], bar=2.0).ahead == 2


def test_the_report_counts_cells_and_bars() -> None:
    lines = [
        made_up("predict", "numpy", 0.5, batch=1),
        made_up("predict", "numpy", 8.0, batch=32),
        made_up("predict", "product", 0.4),
        made_up("predict", "product", 0.6, batch=32),
        made_up("predict", "product", 0.1, dim=8),
        made_up("search", "faiss", 1.5),
        made_up("search", "faiss", 3.0, batch=32),
        made_up("search", "faiss", 9.0, points=1_000),
        replace(made_up("predict", "gpytorch", 5.0), status="failed", note="ours from the rival: 0.1"),
        replace(made_up("predict", "numpy", 5.0), precision="float64", ratio=None),
    ]
    text = markdown(lines, Run(["--force"], "abc", threads=2, load=0.25, resumed=3, missing=["muygpys_torch"]))
    assert "`python benchmarks/local_solve.py --force` · commit abc" in text
    assert "threads: 2, load before the start: 0.2" in text
    assert "3 records are from earlier runs" in text
    assert "Not installed, hence not measured: muygpys_torch." in text
    assert "- predict gpytorch B=1 k=8 M=10000 d=64 float32 failed: ours from the rival: 0.1" in text
    assert "| gpytorch |" not in text
    assert "| numpy | 2 | 0.5 | 8 | 1 of 2 | 4 / 1 |" in text
    assert "| faiss | 3.43 | 1.5 | 9 | 3 of 3 |" in text
    assert "as FAISS flat, M ≥ 10⁴**: 1 of 2 cells; ratio 2.12 in the geometric mean, 1.5 to 3." in text
    assert "whole prediction within 2× of the bare product, M ≥ 10⁴ and d ≥ 64**: 1 of 2 cells" in text
    behind = text.split("## Where we are behind")[1]
    assert behind.strip() == "- predict numpy, 1 cells: B=1 k=8 M=10000 d=64: 0.50"


def test_records_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cells.csv"
    first = made_up("predict", "numpy", 0.5)
    second = replace(first, precision="float64", our_us=None, rival_us=None, ratio=None, note="a, b\n“c”")
    path.write_text(to_csv([second, first]))
    assert sorted(read(path), key=lambda record: record.precision) == [first, second]
    append(path, replace(first, ratio=2.0))
    assert [record.ratio for record in read(path) if record.key == first.key] == [2.0]
    path.write_text("part,rival\npredict,numpy\n")
    assert read(path) == []


def test_the_command_measures_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--batch", "2", "--neighbors", "4", "--points", "80", "--dim", "3", "--rivals", "numpy", "--rounds", "2"]
    words += ["--parts", "predict", "--threads", "1", "--results", str(tmp_path / "v1.5")]
    monkeypatch.setattr(local_solve, "commit", lambda: "abc")
    assert local_solve.main(words) == 0
    assert {record.precision for record in read(tmp_path / "v1.5.csv")} == {"float32", "float64"}
    assert "| numpy |" in (tmp_path / "v1.5.md").read_text()

    def refuse(job: Job, environment: dict[str, str]) -> bool:
        print("asked for", job.todo)
        return False

    monkeypatch.setattr(local_solve, "start", refuse)
    assert local_solve.main(words) == 0
    assert local_solve.main([*words, "--neighbors", "4", "5"]) == 1
    assert "Cell(batch=2, neighbors=5, points=80, dim=3)" in capfd.readouterr().out
    for changed in (["--threads", "2"], ["--force"]):
        assert local_solve.main([*words, *changed]) == 1
    monkeypatch.setattr(local_solve, "commit", lambda: "abc-dirty")
    assert local_solve.main(words) == 1


def test_results_stay_until_the_grid_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = local_solve.Grid(results=tmp_path / "records")
    words = ["--batch", "2", "--neighbors", "4", "8", "--points", "80", "--dim", "3", "--parts", "predict", "--rivals"]
    words += ["numpy", "--results", str(grid.results)]
    grid.csv.write_text(to_csv([made_up("predict", "numpy", 0.5)]))  # of another commit
    grid.markdown.write_text("of another commit")
    published = [path.read_bytes() for path in (grid.csv, grid.markdown)]
    asked: list[int] = []

    def measured(job: Job, environment: dict[str, str]) -> bool:
        asked.append(len(job.todo))
        for precision, cell in job.todo[:3]:
            append(Path(job.results), Record(job.part, job.rival, *cell, precision, "ok", job.commit, job.threads))
        if len(asked) == 1:
            raise KeyboardInterrupt
        return len(asked) > 2

    monkeypatch.setattr(local_solve, "commit", lambda: "new")
    monkeypatch.setattr(local_solve, "start", measured)
    with pytest.raises(KeyboardInterrupt):
        local_solve.main(words)
    assert local_solve.main(words) == 1
    assert f"{grid.csv} stays as it is" in capsys.readouterr().err
    assert [path.read_bytes() for path in (grid.csv, grid.markdown)] == published
    assert local_solve.main([*words, "--neighbors", "4", "8", "16"]) == 0
    assert asked == [4, 1, 2]  # what was measured before is not asked for again
    assert {record.commit for record in read(grid.csv)} == {"new"}
    assert len(read(grid.csv)) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records.csv", "records.md"]


def test_half_an_acting_query_is_measured_again() -> None:
    records = measure_acting(rounds=1, commit="abc")
    assert {record.rival for record in records} == set(local_solve.ACTING)
    grid = local_solve.Grid(parts=("acting",))
    for finished, starts in ((records, 0), (records[:1], 1), ([], 1)):
        needed = local_solve.processes(grid, {record.key for record in finished}, "abc")
        assert [job.part for job, _ in needed] == ["acting"] * starts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rivals", "gpytorch"], "not installed: gpytorch (pip install -e '.[bench]')"),
        (["--parts", "gradient", "--batch", "1"], "none of what is asked for can be measured"),
    ],
)
def test_where_nothing_can_be_measured_the_records_stay(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(local_solve, "is_missing", lambda rival: "gpytorch" in rival.requires)
    monkeypatch.setattr(local_solve, "start", lambda job, environment: pytest.fail("nothing was to be measured"))
    grid = local_solve.Grid(results=tmp_path / "records")
    grid.csv.write_text(to_csv([made_up("predict", "numpy", 0.5)]))
    before = grid.csv.read_bytes()
    assert local_solve.main([*words, "--results", str(grid.results)]) == 2
    assert message in capsys.readouterr().err
    assert grid.csv.read_bytes() == before
    assert not grid.markdown.exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rivals": ("nobody",)}, "unknown rival .'nobody'.; known are faiss"),
        ({"parts": ("all",)}, "unknown part .'all'."),
        ({"batch": (1, 2000)}, "a batch of 2000 queries"),
        ({"neighbors": (8, 64), "points": (64, 1000)}, "64 neighbours need more than 64 points"),
    ],
)
def test_a_wrong_grid_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        local_solve.Grid(**values)


def test_gradients_are_timed_on_a_corner_of_the_grid() -> None:
    assert len(local_solve.Grid().cells("predict")) == 4 * 4 * 3 * 4
    assert len(local_solve.Grid().cells("gradient")) == 2**4


def test_the_acting_head_agrees_with_dense_solves() -> None:
    found = measure_acting(rounds=1, commit="abc")
    assert [(record.rival, record.status, record.points) for record in found] == [
        ("head", "ok", 4000),
        ("correction", "ok", 4000),
    ]
    assert all(record.our_error is not None and 0 < record.our_error < 1e-5 for record in found)
