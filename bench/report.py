"""The report: report.md, its plots (where matplotlib is installed) and results.json."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.part import Figure, Part, Plot

_FIGURES = ("figure", "value", "against", "ratio", "goal", "")


def print_part(part: Part) -> None:
    """The part's tables, to the terminal."""
    console = Console()
    console.print(f"\n[bold]{part.title}[/bold]")
    for columns, rows in _tables(part):
        table = Table(*columns)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for note in part.notes:
        console.print(f"  {note}", markup=False)


def write(parts: Sequence[Part], out: Path) -> None:
    """Write the report on these parts into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    results = {part.name: {**asdict(part), "plots": [asdict(plot) for plot in part.plots]} for part in parts}
    (out / "results.json").write_text(json.dumps({"machine": machine(), "parts": results}, indent=1) + "\n")
    lines = ["# evertap: figures", "", machine(), ""]
    for part in parts:
        lines += [f"## {part.title}", ""]
        for columns, rows in _tables(part):
            lines += [_row(columns), _row(["---"] * len(columns)), *map(_row, rows), ""]
        lines += [f"- {note}" for note in part.notes] + [""]
        lines += [f"![{plot.title}]({plot.name}.svg)\n" for plot in part.plots if draw(plot, out)]
    (out / "report.md").write_text("\n".join(lines))


def machine() -> str:
    """What this was measured on."""
    return f"Linux {platform.release()}, {os.cpu_count()} processors, Python {platform.python_version()}"


def draw(plot: Plot, out: Path) -> bool:
    """Draw one plot; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for label, points in plot.lines.items():
        axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 20 else "")
    axes.set_xscale("log" if plot.log_x else "linear")
    axes.set_yscale("log" if plot.log_y else "linear")
    axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out / f"{plot.name}.svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return True


def _tables(part: Part) -> list[tuple[Sequence[str], list[Sequence[str]]]]:
    tables: list[tuple[Sequence[str], list[Sequence[str]]]] = []
    if part.rows:
        tables.append((part.columns, list(part.rows)))
    if part.figures:
        tables.append((_FIGURES, [_cells(figure) for figure in part.figures]))
    return tables


def _cells(figure: Figure) -> Sequence[str]:
    against = f"{figure.reference_label} {figure.reference:.3g}" if figure.reference is not None else ""
    ratio = f"{figure.ratio:.2f}" if figure.ratio is not None else ""
    verdict = {True: "reached", False: "SHORT", None: ""}[figure.reached]
    return figure.name, f"{figure.value:.3g} {figure.unit}", against, ratio, figure.goal, verdict


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
