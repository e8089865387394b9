"""README's tables and the pictures of benchmarks/results say what the results say."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from paths import ROOT

from ganfast.applications.records import Record
from ganfast.bench import application_report, report
from ganfast.bench.result import Result, geometric_mean, read

RESULTS = ROOT / "benchmarks" / "results"
MACHINE = {
    "cpu": "Abacus", "threads": 2, "capability": "BEADS", "gpu": None, "torch": "2.15.0",
    "commit": "abc", "date": "2026-01-02", "keep_memory": False,
}  # fmt: skip


def result(**changes: object) -> Result:
    own: dict[str, object] = {
        "suite": "ops", "shape": "4x3x5x5", "variant": "float32", "passes": "forward",
        "ms": {"ganfast": (1.0, 0.9, 1.1), "eager": (4.0, 4.0, 4.0), "clone": (0.5, 0.5, 0.5)},
        "bytes": 2_000_000, "copy_bytes": 2_000_000, "images": 0, "cold": False, "graphs": False,
        "machine": MACHINE,
    }  # fmt: skip
    return Result(**{**own, **changes})  # type: ignore[arg-type]


def write(folder: Path, *results: Result) -> None:
    (folder / "abacus.jsonl").write_text("".join(f"{r.to_json()}\n" for r in results))


def test_what_follows_from_a_result():
    one = result()
    assert one.ratio("eager") == 4
    assert one.gigabytes_per_second("ganfast") == 2
    assert one.gigabytes_per_second("clone") == 4
    assert one.share_of_copy == 0.5
    assert one.peers == ["eager"]
    assert geometric_mean([1, 4, 16]) == pytest.approx(4)


def test_a_result_survives_its_file(tmp_path):
    write(tmp_path, result(), result(passes="double backward"))
    again = read(tmp_path / "abacus.jsonl")
    assert [r.passes for r in again] == ["forward", "double backward"]
    assert json.loads(again[0].to_json()) == json.loads(result().to_json())
    (tmp_path / "abacus.jsonl").write_text('{"suite": "ops"}\n')
    with pytest.raises(ValueError, match=r"abacus\.jsonl, line 1"):
        read(tmp_path / "abacus.jsonl")


def test_a_result_of_an_earlier_version_says_nothing_of_memory(tmp_path):
    fields = json.loads(result().to_json())
    for name in ("peak_bytes", "kept_bytes", "kernels", "peak_parts"):
        del fields[name]
    (tmp_path / "abacus.jsonl").write_text(json.dumps(fields))
    (old,) = read(tmp_path / "abacus.jsonl")
    assert old.to_json() == result().to_json()
    assert math.isnan(old.share_of_peak("eager"))
    assert "peak" not in report.tables(tmp_path)


def test_memory_and_kernels_have_columns_where_they_were_measured(tmp_path):
    step = {"suite": "step", "passes": "step", "images": 64, "bytes": 0, "copy_bytes": 0}
    peaks = {"ganfast": 60_400_000, "eager": 80_000_000}
    write(
        tmp_path, result(), result(**step),
        result(**step, shape="8x8", peak_bytes=peaks, kernels={"ganfast": 70, "eager": 301}),
    )  # fmt: skip
    lines = report.tables(tmp_path).splitlines()
    head = "images/s of ganfast | peak MB | eager's peak MB | ours over eager's | kernels | "
    assert f"|  | passes | {head}eager's kernels | eager | clone |" in lines
    assert "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |" in lines
    named = "| training step, float32"
    assert f"{named}, 8x8 | step | 64000 | 60 | 80 | 0.76 | 70 | 301 | 4.0 | 0.50 |" in lines
    assert f"{named}, 4x3x5x5 | step | 64000 |  |  |  |  |  | 4.0 | 0.50 |" in lines
    assert "|  | passes | shapes | eager | clone |" in lines
    write(tmp_path, result(**step, peak_bytes=peaks))
    assert "kernels" not in report.tables(tmp_path)


def test_a_table_has_the_mean_and_the_least_of_each_group(tmp_path):
    slow = {"ganfast": (1.0, 1.0, 1.0), "eager": (1.0, 1.0, 1.0)}
    write(
        tmp_path, result(), result(shape="8x8", ms=slow), result(variant="bfloat16"),
        result(suite="step", passes="step", images=64, bytes=0, copy_bytes=0),
    )  # fmt: skip
    text = report.tables(tmp_path)
    assert "2 threads of Abacus" in text
    assert "| BatchNorm + LeakyReLU, float32 | forward | 2 | 2.0 (1.0) | 0.50 |" in text
    assert "| BatchNorm + LeakyReLU, bfloat16 | forward | 4x3x5x5 | 4.0 | 0.50 |" in text
    assert "| training step, float32, 4x3x5x5 | step | 64000 | 4.0 | 0.50 |" in text


def test_rendering_replaces_what_is_between_the_marks():
    begin, end = report.MARKS["measured"]
    rendered = report.render(f"before\n{begin}stale\n{end}after\n", "measured", "fresh\n")
    assert rendered == f"before\n{begin}fresh\n{end}after\n"
    with pytest.raises(ValueError, match="has no lines"):
        report.render("no marks", "measured", "")


def test_the_headline_has_a_column_for_each_machine(tmp_path):
    write(tmp_path, result(passes="forward+backward"))
    text = report.headline(tmp_path)
    assert text.startswith("| speedup over torch, forward and backward | 2 threads of Abacus")
    assert "\n| BatchNorm + LeakyReLU, float32 | 4.0 |\n| channels-last |  |\n" in text


def test_the_headline_shows_the_step_beside_its_floor(tmp_path):
    times = {
        "ganfast": 2.0,
        "eager": 5.0,
        "all-bf16": 1.0,
        "floor": 4.0,
        "floor-channels-last": 1.6,
    }
    ms = {name: (time, time, time) for name, time in times.items()}
    write(tmp_path, result(suite="step", passes="step", shape=report.STEP, ms=ms))
    lines = report.headline(tmp_path).splitlines()
    assert "| DCGAN's training step, float32 | 2.5 |" in lines
    assert "| DCGAN's training step, bfloat16 | 5.0 |" in lines
    assert "| time of the float32 step over its convolutions alone | 1.25 |" in lines
    write(tmp_path, result(suite="step", passes="step", shape="1x1x32x32", ms=ms))
    assert "| DCGAN's training step, float32 |  |" in report.headline(tmp_path)


def test_the_memory_of_a_step_has_a_table_by_part(tmp_path):
    parts = {
        "ganfast": {"networks": 1_000_000, "backward": 2_540_000},
        "eager": {"networks": 1_000_000, "backward": 4_000_000},
    }
    write(tmp_path, result(), result(suite="step", passes="step", images=64, peak_parts=parts))
    lines = report.tables(tmp_path).splitlines()
    assert "| MB at the peak of a step | layers | networks | backward | all |" in lines
    assert "| 4x3x5x5 | torch's | 1.0 | 4.0 | 5.0 |" in lines
    assert "| 4x3x5x5 | ganfast's | 1.0 | 2.5 | 3.5 |" in lines
    write(tmp_path, result())
    assert "MB at the peak" not in report.tables(tmp_path)


def test_a_record_becomes_a_table_with_its_command(tmp_path):
    table = [
        {"method": "one", "accuracy": 0.98765, "deviation": 0.00123},
        {"method": "two", "gain": 3, "low": -12.345},
    ]
    record = Record("classify", "ganfast classify", {}, table, [], 90.0, MACHINE)
    record.save(tmp_path / "one.json")
    text = application_report.application_tables(tmp_path)
    assert "\n`ganfast classify`: 2 minutes on 2 threads of Abacus" in text
    head = "| method | accuracy | gain | low |\n| --- | --- | --- | --- |\n"
    assert f"{head}| one | 0.9877 ± 0.0012 |  |  |\n| two |  | 3 | -12.3 |\n" in text
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json is no record"):
        application_report.application_tables(tmp_path)


def test_of_a_table_with_a_mean_readme_has_the_mean(tmp_path):
    table = [{"normal": "0", "features": 0.5}, {"normal": "mean", "features": 0.75}]
    table[-1]["features deviation"] = 0.125
    Record("anomaly", "ganfast anomaly", {}, table, [], 9.0, MACHINE).save(tmp_path / "a.json")
    text = application_report.application_tables(tmp_path)
    assert "| normal | features |\n| --- | --- |\n| mean | 0.7500 ± 0.1250 |\n" in text


def test_readme_has_figures_of_the_records_that_are_there(tmp_path):
    def save(name, *table):
        Record("classify", "ganfast classify", {}, table, [], 9.0, MACHINE).save(tmp_path / name)

    save("classify-mnist-100.json", {"method": "sgan", "accuracy": 0.98765})
    assert "MNIST" not in application_report.application_headline(tmp_path)
    other, own = ({"method": name, "accuracy": 0.75} for name in ("consistency", "supervised"))
    save("classify-mnist-methods.json", other, {**own, "accuracy": 0.9})
    (row,) = application_report.application_headline(tmp_path).strip().splitlines()[2:]
    assert row.endswith("| 0.988 `sgan` | 0.900 the labels alone |")


def test_the_command_writes_tables_and_pictures(tmp_path, monkeypatch, capsys):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    write(folder, result(), result(passes="forward+backward"))
    (tmp_path / "docs").mkdir()
    named = {
        "README": ("headline", "put to use"),
        "docs/performance": ("measured",),
        "docs/applications": ("applications",),
    }
    for path, names in named.items():
        marks = [mark for name in names for mark in report.MARKS[name]]
        (tmp_path / f"{path}.md").write_text("".join(marks))
    monkeypatch.setattr(sys, "argv", ["report", "--root", str(tmp_path)])
    report.main()
    for path in ("README", "docs/performance"):
        assert "Abacus" in (tmp_path / f"{path}.md").read_text()
    pictures = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [p.name for p in pictures] == ["speed-abacus.png", "roofline-abacus.png"]
    for path in pictures:
        with image.open(path) as picture:
            assert picture.info["Description"] == report.digest(folder / "abacus.jsonl")


def test_documents_agree_with_the_results():
    assert list(RESULTS.glob("*.jsonl"))
    for path, text in report.documents(ROOT).items():
        assert path.read_text() == text, f"{path.name}: run python -m ganfast.bench.report"


def test_pictures_agree_with_the_results():
    image = pytest.importorskip("PIL.Image")
    for path in RESULTS.glob("*.jsonl"):
        for kind in ("speed", "roofline"):
            with image.open(RESULTS / f"{kind}-{path.stem}.png") as picture:
                assert picture.info["Description"] == report.digest(path)
