"""Render the tables of README and docs, and the pictures, from benchmarks/results."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from ganfast.bench.application_report import application_headline, application_tables
from ganfast.bench.plot import bars, roofline
from ganfast.bench.result import Result, geometric_mean, read

__all__ = ["draw", "headline", "main", "render", "tables"]

COMMAND = "python -m ganfast.bench.report"
MARKS = {
    name: (f"<!-- {name}: {COMMAND} -->\n", f"<!-- end of {name} -->\n")
    for name in ("headline", "put to use", "measured", "applications")
}
"""The lines between which a text has what is rendered."""
TITLES = {
    "ops": "BatchNorm + LeakyReLU",
    "losses": "BCE",
    "overhead": "BatchNorm + LeakyReLU on 256 values",
    "step": "training step",
}
TAKEN = (
    "time over floor",
    "peak MB",
    "eager's peak MB",
    "ours over eager's",
    "kernels",
    "eager's kernels",
)
"""Columns of whole steps, each shown if a file of results has values for it."""


def render(text: str, name: str, rendered: str) -> str:
    """Return a text with what was rendered between the two marks of a name of ``MARKS``.

    Raises:
        ValueError: the marks are missing.
    """
    first, last = MARKS[name]
    head, begin, rest = text.partition(first)
    _, end, tail = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"the text has no lines {first.strip()!r} and {last.strip()!r}")
    return head + begin + rendered + end + tail


def documents(root: Path) -> dict[Path, str]:
    """Return the text that each document of the repository should have."""
    results = root / "benchmarks" / "results"
    of_applications = results / "applications"
    parts = {
        "README.md": {
            "headline": headline(results), "put to use": application_headline(of_applications)
        },
        "docs/performance.md": {"measured": tables(results)},
        "docs/applications.md": {"applications": application_tables(of_applications)},
    }  # fmt: skip
    texts = {root / name: (root / name).read_text() for name in parts}
    for path, own in zip(texts, parts.values(), strict=True):
        for name, rendered in own.items():
            texts[path] = render(texts[path], name, rendered)
    return texts


HEADLINE = {
    "BatchNorm + LeakyReLU, float32": ("ops", "float32", "forward+backward"),
    "channels-last": ("ops", "float32 channels-last", "forward+backward"),
    "bfloat16": ("ops", "bfloat16", "forward+backward"),
    "gradient of the gradient, float32": ("ops", "float32", "double backward"),
    "discriminator's BCE loss": ("losses", "discriminator loss", "forward+backward"),
}
"""The rows of README's table that are of layers alone."""

STEP = "64x3x64x64"
"""The training step in README's table: the paper's images, at the batch of most examples."""


def headline(folder: Path) -> str:
    """Return the table of speedups over torch's own layers, a column for each file of results."""
    files = [read(path) for path in sorted(folder.glob("*.jsonl"), reverse=True)]
    names = [_machine(results[0]) for results in files]
    rows = [["speedup over torch, forward and backward", *names], ["---", *["---:"] * len(names)]]
    for title, key in HEADLINE.items():
        groups = [[r for r in rs if (r.suite, r.variant, r.passes) == key] for rs in files]
        rows.append([title, *(_ratios(group, "eager") for group in groups)])
    steps = [next((r for r in rs if (r.suite, r.shape) == ("step", STEP)), None) for rs in files]
    rows += [[title, *(figure(step) for step in steps)] for title, figure in OF_STEP.items()]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    said = (
        "Layers and losses: geometric mean over DCGAN's shapes, in brackets the smallest.\n"
        f"Steps: a batch of {STEP}, against the PyTorch example's loop in float32.\n"
    )
    return f"{lines}\n\n{said}"


def _speedup(step: Result | None) -> str:
    return "" if step is None else _number(step.ratio("eager"))


def _speedup_in_bf16(step: Result | None) -> str:
    if step is None or "all-bf16" not in step.ms:
        return ""
    return _number(step.ratio("eager") / step.ratio("all-bf16"))


def _over_floor(step: Result | None) -> str:
    return "" if step is None or math.isnan(step.over_floor) else f"{step.over_floor:.2f}"


OF_STEP = {
    "DCGAN's training step, float32": _speedup,
    "DCGAN's training step, bfloat16": _speedup_in_bf16,
    "time of the float32 step over its convolutions alone": _over_floor,
}
"""The rows of README's table that are of the whole step, and their figures."""


def tables(folder: Path) -> str:
    """Return one table for each file of results, in Markdown."""
    texts = []
    for path in sorted(folder.glob("*.jsonl")):
        results = read(path)
        texts.append(f"\n{_caption(path.stem, results)}\n\n{_table(results)}\n{_memory(results)}")
    return "".join(texts)


def _memory(results: Sequence[Result]) -> str:
    """Return a table of the memory at the peak of each step by part, "" if none was measured."""
    steps = [r for r in results if r.peak_parts]
    if not steps:
        return ""
    parts = list(steps[0].peak_parts["ganfast"])
    rows = [["MB at the peak of a step", "layers", *parts, "all"]]
    rows.append(["---"] * 2 + ["---:"] * (len(parts) + 1))
    for result in steps:
        for name, layers in (("eager", "torch's"), ("ganfast", "ganfast's")):
            sizes = result.peak_parts[name]
            figures = [f"{size / 1e6:.1f}" for size in (*sizes.values(), sum(sizes.values()))]
            rows.append([result.shape, layers, *figures])
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"\n{lines}\n"


def draw(folder: Path, pictures: Path) -> list[Path]:
    """Draw the bars and the roofline of each file of results, and return what was drawn.

    A picture's description is the digest of its file of results, by which a test sees whether it
    is out of date.
    """
    drawn = []
    for path in sorted(folder.glob("*.jsonl")):
        plain = [r for r in read(path) if r.suite == "ops" and r.variant == "float32"]
        kinds = {
            "speed": (bars, [r for r in plain if r.passes == "forward+backward"]),
            "roofline": (roofline, [r for r in plain if r.passes != "double backward"]),
        }
        for kind, (draw_one, results) in kinds.items():
            if results:
                drawn.append(pictures / f"{kind}-{path.stem}.png")
                title = f"BatchNorm + LeakyReLU, {_machine(results[0])}"
                draw_one(results, str(drawn[-1]), title=title, description=digest(path))
    return drawn


def digest(path: Path) -> str:
    """Return what identifies the content of a file of results."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def main() -> None:
    """Write the tables into README and docs, and the pictures beside the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="the repository's folder")
    root: Path = parser.parse_args().root
    folder = root / "benchmarks" / "results"
    try:
        for path, text in documents(root).items():
            path.write_text(text)
        for path in draw(folder, folder):
            print(path)
    except (OSError, ValueError) as error:
        parser.error(str(error))


def _machine(result: Result) -> str:
    machine = result.machine
    name = machine["cpu"].replace("(R)", "").removesuffix(" Processor")
    cpu = f"{machine['threads']} threads of {name} ({machine['capability']})"
    return machine["gpu"] or cpu


def _caption(name: str, results: Sequence[Result]) -> str:
    machines = [r.machine for r in results]
    dates = sorted({m["date"] for m in machines})
    versions = sorted({f"torch {m['torch']}, commit {m['commit']}" for m in machines})
    return (
        f"**{_machine(results[0])}**, {'; '.join(versions)}, {' to '.join(dates)}. "
        "Speedups: geometric mean over the shapes, and the smallest. "
        f"Every case: [{name}.jsonl](../benchmarks/results/{name}.jsonl)."
    )


def _table(results: Sequence[Result]) -> str:
    """Return one table of what is measured alone, and one of whole steps, whose peers differ."""
    parts = [[r for r in results if bool(r.images) == whole] for whole in (False, True)]
    return "\n\n".join(_rows(part) for part in parts if part)


def _rows(results: Sequence[Result]) -> str:
    names = list(dict.fromkeys(name for r in results for name in r.ms))
    others = [name for name in names if name not in ("ganfast", "sum")]
    taken = [heading for heading in TAKEN if any(_taken(r)[heading] for r in results)]
    head = "images/s of ganfast" if results[0].images else "shapes"
    rows = [["", "passes", head, *taken, *others]]
    rows.append(["---"] * 3 + ["---:"] * len(taken + others))
    for (what, passes), group in itertools.groupby(sorted(results, key=_order), key=_row):
        members = list(group)
        sizes = members[0].shape if len(members) == 1 else str(len(members))
        if members[0].images:
            sizes = f"{1e3 * members[0].images / members[0].ms['ganfast'][0]:.0f}"
        figures = [_taken(members[0])[heading] for heading in taken]
        rows.append([what, passes, sizes, *figures, *(_ratios(members, p) for p in others)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _taken(result: Result) -> dict[str, str]:
    """Return memory and kernels of a step by heading; "" if they were not measured."""
    megabytes = {name: f"{size / 1e6:.0f}" for name, size in result.peak_bytes.items()}
    kernels = {name: str(count) for name, count in result.kernels.items()}
    share = result.share_of_peak("eager")
    over_floor = "" if math.isnan(result.over_floor) else f"{result.over_floor:.2f}"
    values = (
        over_floor, megabytes.get("ganfast", ""), megabytes.get("eager", ""),
        "" if math.isnan(share) else f"{share:.2f}",
        kernels.get("ganfast", ""), kernels.get("eager", ""),
    )  # fmt: skip
    return dict(zip(TAKEN, values, strict=True))


def _row(result: Result) -> tuple[str, str]:
    """Return what a result's row is called, and its passes."""
    details = [result.variant]
    details += ["cold"] * result.cold + ["in CUDA graphs"] * result.graphs
    details += ["memory kept"] * bool(result.machine.get("keep_memory"))
    if result.images:
        details.append(result.shape)
    return f"{TITLES.get(result.suite, result.suite)}, {', '.join(details)}", result.passes


def _order(result: Result) -> tuple[int, str, str]:
    return list(TITLES).index(result.suite), *_row(result)


def _ratios(results: Iterable[Result], peer: str) -> str:
    ratios = [r.ratio(peer) for r in results if peer in r.ms]
    if not ratios:
        return ""
    least = f" ({_number(min(ratios))})" if len(ratios) > 1 else ""
    return f"{_number(geometric_mean(ratios))}{least}"


def _number(ratio: float) -> str:
    """Return two digits: 0.48, 3.0, 12."""
    return f"{ratio:.2f}" if ratio < 1 else f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"


if __name__ == "__main__":
    main()
