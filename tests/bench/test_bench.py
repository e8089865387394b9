"""`ganfast bench`: every suite runs, wrong values stop it, and its files hold what was measured."""

from __future__ import annotations

import contextlib
import platform
import re
import runpy
import subprocess
import sys
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from paths import ROOT
from torch.utils._python_dispatch import TorchDispatchMode

from ganfast import backend
from ganfast import nn as fast
from ganfast.bench import SUITES, Options, compare, timing
from ganfast.bench import batch_norm_act as norm_cases
from ganfast.bench.case import CALLS_PER_GRAPH, PASSES, Rotation
from ganfast.bench.floor import FLOORS
from ganfast.bench.result import read
from ganfast.cli import bench as bench_command
from ganfast.cli import main
from ganfast.cli.errors import CommandError

BFLOAT16 = "bfloat16"
SMALL = {"ops": (4, 3, 5, 5), "losses": (8,), "overhead": (2, 8, 4, 4), "step": (4, 1, 16, 16)}


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("cold_bytes", [0, 5000])
def test_every_suite_measures_ours_and_torchs(suite, cold_bytes):
    pytest.importorskip("tqdm")
    options = Options(shapes=(SMALL[suite],), cold_bytes=cold_bytes)
    cases = list(SUITES[suite].cases(options))
    assert cases
    for case in cases:
        providers = case.build()
        assert tuple(providers) == case.names
        assert {"ganfast", "eager"} <= providers.keys()
        times = compare(providers, rounds=2, least_seconds=1e-5)
        assert all(time.lower_s <= time.median_s <= time.upper_s for time in times.values())
        assert bool(case.images) == (suite == "step")
        assert bool(case.bytes_moved) == (suite in ("ops", "losses"))


def test_make_bench_has_every_suite():
    cases = runpy.run_path(str(ROOT / "benchmarks" / "test_speed.py"))["CASES"]
    assert {name.partition(" ")[0] for name in cases} == set(SUITES)


def test_every_pass_dtype_and_layout():
    options = Options(
        passes=("forward", "double backward"), dtypes=("float32", "bfloat16"),
        layouts=("NC*", "channels-last"), shapes=((4, 3, 5, 5), (16, 4)),
    )  # fmt: skip
    cases = list(SUITES["ops"].cases(options))
    assert len({(case.shape, case.variant, case.passes) for case in cases}) == len(cases) == 16
    moved = {case.bytes_moved for case in cases if (case.shape, case.variant) == ("16x4", BFLOAT16)}
    assert moved == {2 * 64 * 2, 5 * 64 * 2}
    for case in cases:
        case.build()


def test_rows_of_instance_norm_follow_where_no_shapes_are_given(monkeypatch):
    monkeypatch.setattr(norm_cases, "DCGAN_SHAPES", ((4, 3),))
    monkeypatch.setattr(norm_cases, "INSTANCE_SHAPES", ((1, 3, 5, 5), (2, 3, 4, 5, 3)))
    options = Options(passes=PASSES, layouts=("NC*", "channels-last"), against=("eager", "timm"))
    cases = [c for c in SUITES["ops"].cases(options) if c.variant.startswith("instance float32")]
    assert len({(case.shape, case.variant, case.passes) for case in cases}) == len(cases) == 12
    for case in cases:
        assert tuple(case.build()) == ("ganfast", "eager", "clone")


def test_cold_inputs_take_turns_and_exceed_the_size_asked_for():
    (case,) = SUITES["ops"].cases(
        Options(passes=("forward",), shapes=((4, 3, 5, 5),), cold_bytes=10 * case_bytes())
    )
    clone = case.build()["clone"]
    assert clone.period == 10
    first, *others, again = (clone() for _ in range(11))
    assert torch.equal(first, again)
    assert not any(torch.equal(first, other) for other in others)


def case_bytes() -> int:
    return 2 * 4 * 3 * 5 * 5 * 4


def test_a_provider_named_for_a_backend_is_served_by_it(monkeypatch):
    served = []
    real = backend.use
    monkeypatch.setattr(backend, "use", lambda name: served.append(name) or real("eager"))
    ours = fast.BatchNorm2d(3)
    x = torch.randn(2, 3, 4, 4)
    seen = []
    compare(
        {"ganfast": lambda: ours(x), "native": lambda: seen.append(backend.explain("cpu"))},
        rounds=1, least_seconds=1e-9,
    )  # fmt: skip
    assert set(served) == {"native"}
    assert all("use('eager') is in force" in text for text in seen)
    assert "in force" not in backend.explain("cpu")


def test_timm_computes_the_same():
    pytest.importorskip("timm")
    options = Options(passes=PASSES[:2], shapes=((4, 3, 5, 5), (16, 4)), against=("timm",))
    names = {case.shape: tuple(case.build()) for case in SUITES["ops"].cases(options)}
    assert names == {"4x3x5x5": ("ganfast", "timm", "clone"), "16x4": ("ganfast", "clone")}


@pytest.mark.parametrize(
    ("peer", "suite", "said"),
    [
        ("timm", "losses", "no counterpart"),
        ("inplace_abn", "ops", "pip install inplace_abn"),
        ("triton", "ops", "no triton kernels on cpu"),
    ],
)
def test_missing_peers_are_named(peer, suite, said, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "inplace_abn", None)
    monkeypatch.setattr(backend, "available", lambda device: ("eager",))
    command = ["bench", suite, "--device", "cpu", "--rounds", "1", "--passes", "forward"]
    shape = "x".join(map(str, SMALL[suite]))
    assert main([*command, "--against", "eager", peer, "--shapes", shape]) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"^{peer} is not measured: .*{said}", printed, re.MULTILINE)
    assert "speedup over eager" in printed


def test_the_command_prints_and_writes(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    found, drawn, roof = (tmp_path / name for name in ("found.jsonl", "drawn.png", "roof.png"))
    command = ["bench", "ops", "--device", "cpu", "--shapes", "4x3x5x5", "16x4", "--rounds", "2"]
    files = ["--json", str(found), "--plot", str(drawn), "--roofline", str(roof)]
    for _ in range(2):  # appends
        assert main([*command, *files]) == 0
    printed = capsys.readouterr().out
    results = read(found)
    assert len(results) == 2 * 2 * 2
    assert {result.passes for result in results} == {"forward", "forward+backward"}
    for result in results:
        assert re.search(
            rf"^{result.shape} .*{re.escape(result.passes)} .*%.*%", printed, re.MULTILINE
        )
        assert result.machine["torch"] == torch.__version__
        assert result.bytes > 0 < result.ms["ganfast"][0]
    assert "GB/s" in printed
    assert "geometric mean" in printed
    for path in (drawn, roof):
        with image.open(path) as picture:
            assert min(picture.size) > 100


def test_a_stopped_command_has_written_what_it_measured(tmp_path, monkeypatch, capsys):
    path, measured = tmp_path / "found.jsonl", []

    def stopped(*arguments, **options):
        if measured:
            assert "4x3x5x5" in capsys.readouterr().out
            assert [r.shape for r in read(path)] == ["4x3x5x5"]
            raise KeyboardInterrupt
        measured.append(compare(*arguments, **options))
        return measured[0]

    monkeypatch.setattr(bench_command, "compare", stopped)
    command = ["bench", "ops", "--device", "cpu", "--shapes", "4x3x5x5", "16x4", "--rounds", "2"]
    assert main([*command, "--json", str(path)]) == 130
    assert len(read(path)) == 1


@pytest.mark.parametrize("period", [1, 3, 30])
def test_a_graph_holds_many_calls_and_whole_rotations(monkeypatch, period):
    """By a clock of the test's own, on which a replay takes a second."""
    now, called, capturing = [0], [], []

    class Graph:
        def replay(self):
            now[0] += 1

    @contextlib.contextmanager
    def capture(graph):
        capturing.append(len(called))
        yield
        capturing.append(len(called))

    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {
        "CUDAGraph": Graph, "Stream": lambda: stream, "current_stream": lambda: stream,
        "stream": lambda stream: contextlib.nullcontext(), "graph": capture,
        "synchronize": lambda: None,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    functions = [partial(called.append, i) for i in range(period)]
    function = functions[0] if period == 1 else Rotation(functions)
    found = compare({"ganfast": function}, rounds=3, device="cuda", graphs=True)
    first, last = capturing
    captured = called[first:last]
    assert len(captured) >= CALLS_PER_GRAPH
    assert captured == list(range(period)) * (len(captured) // period)
    assert first >= 3
    assert found["ganfast"].median_s == pytest.approx(1 / len(captured))


def test_calls_in_graphs_read_inputs_of_their_own():
    for suite in ("ops", "losses"):
        case, *_ = SUITES[suite].cases(Options(shapes=(SMALL[suite],), graphs=True))
        assert {call.period for call in case.build().values()} == {CALLS_PER_GRAPH}


def test_steps_have_a_column_and_a_line_of_memory(tmp_path, capsys):
    pytest.importorskip("tqdm")
    found = tmp_path / "found.jsonl"
    command = ["bench", "step", "--device", "cpu", "--shapes", "4x1x16x16", "--rounds", "2"]
    assert main([*command, "--against", "eager", "losses", "--json", str(found)]) == 0
    printed = capsys.readouterr().out
    (one,) = read(found)
    assert one.peak_bytes.keys() == one.kept_bytes.keys() == {"ganfast", "eager", "losses"}
    assert one.kernels == {}
    ours, theirs = (f"{one.peak_bytes[name] / 1e6:.0f}" for name in ("ganfast", "eager"))
    assert re.search(rf"images/s +peak MB.*\n4x1x16x16 .* {ours} ", printed)
    assert re.search(rf"^4x1x16x16: peak MB .*: ganfast {ours} .*eager {theirs} ", printed, re.M)
    share = one.peak_bytes["ganfast"] / one.peak_bytes["eager"]
    assert f"peak memory is {share:.2f} of eager's (target: at most 0.75)" in printed


def test_a_floor_repeats_the_convolutions_of_a_step():
    """A DCGAN for 16 pixels has three convolutions in either network."""
    ran = []

    class Convolutions(TorchDispatchMode):
        layout = None

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            ran.append((func.__name__, [a.shape for a in args if torch.is_tensor(a)], args[-1]))
            assert args[0].is_contiguous(memory_format=self.layout)
            return func(*args, **(kwargs or {}))

    (case,) = SUITES["step"].cases(Options(shapes=((4, 1, 16, 16),)))
    providers = case.build()
    for name, layout in FLOORS.items():
        ran.clear()
        mode = Convolutions()
        mode.layout = layout
        with mode:
            providers[name]()
        masks = [mask for name, _, mask in ran if name == "convolution_backward.default"]
        assert len(ran) - len(masks) == 3 + 3 * 3
        # Weights of the discriminator, for real and for generated images, without those of pixels;
        # the images of the last pass, without weights; the generator, without its latent vectors.
        counted = Counter(tuple(map(bool, mask[:2])) for mask in masks)
        assert counted == {(True, True): 2 * 2 + 2, (False, True): 2 + 1, (True, False): 3}


def test_steps_have_a_ratio_to_their_floor(tmp_path, capsys):
    found = tmp_path / "found.jsonl"
    command = ["bench", "step", "--device", "cpu", "--shapes", "4x1x16x16", "--rounds", "2"]
    assert main([*command, "--json", str(found)]) == 0
    (one,) = read(found)
    assert one.peers == ["eager"]
    assert one.over_floor == one.ms["ganfast"][0] / min(one.ms[name][0] for name in FLOORS)
    assert re.search(rf"/ floor.*\n4x1x16x16 .* {one.over_floor:.2f} ", capsys.readouterr().out)


def test_wrong_values_stop_the_command(monkeypatch, capsys):
    monkeypatch.setattr(fast.BatchNorm2d, "forward", lambda self, x: 1.01 * x)
    assert main(["bench", "ops", "--device", "cpu", "--shapes", "4x3x5x5", "--rounds", "2"]) == 2
    assert "differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ops", "--shapes", "64"], "NxCxHxW"),
        (["ops", "--shapes", "4xa"], "64x128x8x8"),
        (["ops", "--device", "abacus"], "abacus"),
        (["step", "--shapes", "4x1x16x32"], "square"),
        (["ops", "--json", "no/such/folder.jsonl"], "No such file"),
        (["ops", "--device", "cpu", "--graphs"], "--graphs needs --device cuda"),
        (["nothing"], "nothing"),
    ],
)
def test_bad_input_is_an_error_of_one_line(arguments, said, capsys):
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_capability_holds_ganfast_and_torch_to_it(monkeypatch):
    for name in ("GANFAST_CPU_CAPABILITY", "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA"):
        monkeypatch.setenv(name, "")  # and back to what they are afterwards
        monkeypatch.delenv(name)
    if platform.machine() != "x86_64":
        pytest.skip("torch names no instruction sets here")
    code = (
        "import ctypes; from ganfast.cli import main; from ganfast.ops import extension\n"
        "main(['bench', 'overhead', '--capability', 'baseline', '--rounds', '2'])\n"
        "library = ctypes.CDLL(str(extension.library('cpu')))\n"
        "library.ganfast_build_description.restype = ctypes.c_char_p\n"
        "print(library.ganfast_build_description())"
    )
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "capability DEFAULT" in said
    assert "native" not in backend.available("cpu") or "baseline instructions" in said
    torch.ones(8).sum()  # the choice is made here, in this process
    if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
        with pytest.raises(CommandError, match="--capability baseline: this processor"):
            bench_command._hold_to("baseline")
