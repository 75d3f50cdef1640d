"""What a person sees while cells run: one live table on a terminal, plain lines elsewhere. Reads files alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from bench import record
from bench.config import Cell
from bench.suite import Suite


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a cell is."""

    arm: str
    seed: int
    done: bool
    rows: Sequence[record.Row]
    iterations: int

    @property
    def state(self) -> str:
        """Return iterations done of all, or what comes before and after them."""
        if self.done:
            return "done"
        if not self.rows:
            return "waiting"
        return "judging" if len(self.rows) == self.iterations else f"{len(self.rows)}/{self.iterations}"

    @property
    def reward(self) -> str:
        """Return the mean training reward of the last five iterations, and of the first five."""
        if not self.rows:
            return ""
        total = [row["reward_total"] for row in self.rows]
        return f"{np.mean(total[:5]):.3f} → {np.mean(total[-5:]):.3f}"

    @property
    def phases(self) -> str:
        """Return the median seconds by phase."""
        warm = self.rows[1:] or self.rows
        names = ("rollout", "score", "update")
        return "  ".join(f"{np.median([row['seconds'][n] for row in warm]):.2f}" for n in names) if warm else ""

    @property
    def left(self) -> float:
        """Return the seconds that the remaining iterations will take; NaN before the first."""
        if not self.rows:
            return float("nan")
        median = float(np.median([sum(row["seconds"].values()) for row in self.rows]))
        return median * (self.iterations - len(self.rows))


def progress(suite: Suite, cell: Cell) -> Progress:
    """Return how far a cell is, from its files."""
    folder = suite.folder / cell.folder
    return Progress(
        arm=cell.arm,
        seed=cell.seed,
        done=record.is_done(folder, cell.hash),
        rows=list(record.read_rows(folder / "metrics.jsonl")),
        iterations=cell.shared.iterations,
    )


@dataclass(slots=True, kw_only=True)
class Watch:
    """Follows a suite's cells; call it now and then."""

    suite: Suite
    console: Console
    live: Live | None
    began: float = field(default_factory=time.monotonic)
    said: dict[str, str] = field(default_factory=dict)
    seen: dict[str, tuple[int, Progress]] = field(default_factory=dict)
    """A cell's rows in bytes, and its progress then: what has not grown is not read again."""

    def progress(self, cell: Cell) -> Progress:
        """Return how far a cell is."""
        folder = self.suite.folder / cell.folder
        metrics = folder / "metrics.jsonl"
        size = metrics.stat().st_size if metrics.is_file() else 0
        before = self.seen.get(cell.folder)
        if before is None or before[0] != size or (not before[1].done and record.is_done(folder, cell.hash)):
            self.seen[cell.folder] = (size, progress(self.suite, cell))
        return self.seen[cell.folder][1]

    def __call__(self) -> None:
        """Show what is new."""
        found = [self.progress(cell) for cell in self.suite.cells]
        if self.live is not None:
            self.live.update(table(found, time.monotonic() - self.began))
        else:
            self.speak(found)

    def speak(self, found: Sequence[Progress]) -> None:
        """Print a line where a cell has moved on by a fifth of its iterations, or changed its state."""
        for p in found:
            key = f"{p.arm} seed {p.seed}"
            fifth = 5 * len(p.rows) // max(1, p.iterations)
            state = p.state if p.done or not p.rows else f"fifth {fifth}"
            if self.said.get(key) != state and p.rows:
                self.said[key] = state
                left = "" if p.done else f", {p.left:.0f} s left"
                self.console.print(
                    f"[{time.monotonic() - self.began:5.0f} s] {key}: {p.state}, reward {p.reward}{left}",
                    markup=False,
                    highlight=False,
                )


def table(found: Sequence[Progress], seconds: float) -> Table:
    """Return the live table."""
    out = Table(title=f"{sum(p.done for p in found)} of {len(found)} cells done, {seconds:.0f} s", title_justify="left")
    out.add_column("cell")
    for name in ("iteration", "reward", "rollout  score  update, s", "left, s"):
        out.add_column(name, justify="right")
    for p in found:
        left = "" if np.isnan(p.left) or p.done else f"{p.left:.0f}"
        out.add_row(f"{p.arm} seed {p.seed}", p.state, p.reward, p.phases, left)
    return out


def watching(suite: Suite, console: Console, run: Callable[[Callable[[], None]], None]) -> None:
    """Call `run` with a watch that shows the suite's progress on the console."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:
            run(Watch(suite=suite, console=console, live=live))
    else:
        run(Watch(suite=suite, console=console, live=None))
