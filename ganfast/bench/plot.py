"""Draw what was measured."""

from __future__ import annotations

from typing import Any

__all__ = ["bars"]


def bars(rows: list[dict[str, Any]], path: str) -> None:
    """Draw, for every case, each peer's time over ours as a bar into a PNG file.

    Args:
        rows: as ``ganfast bench --json`` writes them.
        path: of the file.
    """
    from matplotlib.figure import Figure

    peers = [name for name in rows[0]["ms"] if name not in ("ganfast", "clone", "sum")]
    figure = Figure(figsize=(9, 1.2 + 0.28 * len(rows) * max(1, len(peers))), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / max(1, len(peers))
    for index, peer in enumerate(peers):
        ratios = [row["ms"][peer][0] / row["ms"]["ganfast"][0] for row in rows]
        places = [position + index * height for position in range(len(rows))]
        drawn = axes.barh(places, ratios, height, label=f"torch, {peer}")
        axes.bar_label(drawn, fmt="%.1f", padding=3, fontsize=8)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(
        [position + 0.4 - height / 2 for position in range(len(rows))],
        [f"{row['case']}, {row['passes']}" for row in rows],
        fontsize=8,
    )
    axes.margins(x=0.08)  # room for the figures at the ends of the bars
    axes.invert_yaxis()
    axes.set_xlabel("time of torch over time of ganfast")
    axes.legend()
    figure.savefig(path, dpi=120)
