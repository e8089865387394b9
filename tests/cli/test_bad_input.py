"""Bad input of every command: exit code 2 and one line. Run with -s to see the table."""

from __future__ import annotations

import contextlib
import io
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

for package in ("torchvision", "matplotlib", "tqdm", "safetensors", "scipy", "sklearn"):
    pytest.importorskip(package)
Image = pytest.importorskip("PIL.Image")

from ganfast.cli import main  # noqa: E402
from ganfast.training import CheckpointError, load_checkpoint, load_newest, quality  # noqa: E402
from ganfast.training.checkpoints import write_checkpoint  # noqa: E402

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and devices are POSIX's")
LONG = "a" * 300
HUGE = str(2**31 - 1)
TINY = "--image-size 16 --width 4 --latent 6 --batch-size 8 --device cpu"


def npy(shape: tuple[int, ...]) -> bytes:
    """Return the header of a .npy file that claims a shape, and a few bytes."""
    buffer = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + b"few"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run, and with what may lie beside it."""
    at = tmp_path_factory.mktemp("world")
    x = np.random.default_rng(0).integers(0, 256, (24, 16, 16), dtype=np.uint8)
    np.savez(at / "good.npz", x=x, y=np.arange(24) % 2)
    np.savez(at / "below.npz", x=x, y=np.full(24, -2))
    np.savez(at / "wraps.npz", x=x, y=np.full(24, 2**63, dtype=np.uint64))
    np.savez(at / "unlabelled.npz", x=x, y=np.full(24, -1))
    np.savez(at / "one_class.npz", x=x, y=np.arange(24) % 2 - 1)
    np.save(at / "bare.npz.npy", x)
    (at / "bare.npz.npy").rename(at / "bare.npz")
    for name, content in (("text", b"hello"), ("claims", npy((10**6, 10**6))), ("cut", npy((9,)))):
        with zipfile.ZipFile(at / f"{name}.npz", "w") as archive:
            archive.writestr("x" if name == "text" else "x.npy", content)
    (at / "garbage.npz").write_bytes(b"PK\x03\x04garbage")
    (at / "file").write_text("")
    (at / "folder.pt2").mkdir()
    for suffix in ("pt2", "safetensors"):
        (at / f"full.{suffix}").symlink_to("/dev/full")
    os.mkfifo(at / "pipe.safetensors")
    os.mkfifo(at / "pipe.npz")
    os.mkfifo(at / "pipe.png")
    (at / "cats_only" / "cats").mkdir(parents=True)
    Image.fromarray(x[0]).save(at / "cats_only" / "cats" / "one.png")
    (at / "piped_run").mkdir()
    os.mkfifo(at / "piped_run" / "checkpoint-00000001.safetensors")
    words = f"train --data npz:{at}/good.npz --steps 2 --quality-every 0 {TINY} --out {at}/run"
    assert main(words.split()) == 0
    state = load_newest(at / "run")[1]
    for name, changed in forgeries(state).items():
        (at / name).mkdir()
        write_checkpoint(at / name / "checkpoint-00000002.safetensors", 2, changed)
    return at


def forgeries(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return changed states of a run, by the names of their folders."""
    adam = state["optimizer_g"]
    moments = {**adam["state"][0], "exp_avg": torch.zeros(1)}
    model = state["configuration"]["model"]
    width = {**model, "options": {**model["options"], "width": 10**9}}
    return {
        "adam": {**state, "optimizer_g": {**adam, "state": {**adam["state"], 0: moments}}},
        "future": {**state, "options": {**state["options"], "wings": 2}},
        "typed": {**state, "options": {**state["options"], "image_size": "sixteen"}},
        "wide": {**state, "configuration": {"model": width}},
        "bare": {"generator": {}},
    }


CASES = {
    # Command, and a part of the line.
    "train --data npz:{w}/below.npz": "must be -1 (no label) or from 0 to 2^63 - 1, got -2",
    "train --data npz:{w}/wraps.npz": "or from 0 to 2^63 - 1, got 9223372036854775808",
    "train --data npz:{w}/text.npz": "a member is no .npy file",
    "train --data npz:{w}/claims.npz": "claims.npz cannot be read: ",
    "train --data npz:{w}/cut.npz": "cut.npz cannot be read: ",
    "train --data npz:{w}/bare.npz": "it holds one bare array",
    "train --data npz:{w}/garbage.npz": "garbage.npz cannot be read: ",
    "train --data npz:{w}/pipe.npz": "no such file",
    "train --data npz:{w}/" + LONG: "File name too long",
    "train --data folder:{w}/" + LONG: "File name too long",
    "train --data npz:{w}/good.npz --width " + HUGE: "not enough memory",
    "train --data npz:{w}/good.npz --width 30000": "choose a smaller --width or --latent",
    "train --data npz:{w}/good.npz --latent " + HUGE: "choose a smaller --width or --latent",
    "train --data npz:{w}/good.npz --width 1000000000000": "must be a positive integer below 2^31",
    "train --data npz:{w}/good.npz --batch-size " + HUGE: "is larger than",
    "train --data npz:{w}/good.npz --device cpu:5": "--device cpu:5 is not available: there is one",
    "train --data npz:{w}/good.npz --device 7": "--device 7 is not available",
    "train --data npz:{w}/good.npz --batch-size 8 --out {w}/" + LONG: "File name too long",
    "train --data npz:{w}/good.npz --batch-size 8 --out {w}/file": "cannot write to --out",
    "train --data npz:{w}/good.npz --batch-size 8 --out /proc/run": "cannot write to --out /proc",
    "train --resume --out {w}/adam --steps 3": "Adam's state of a parameter must be",
    "train --resume --out {w}/future": "settings that this version does not know: wings; resume",
    "train --resume --out {w}/typed": "image_size cannot be 'sixteen'",
    "train --resume --out {w}/bare": "the checkpoint was not written by 'ganfast train'",
    "train --resume --out {w}/piped_run": "it is no file",
    "sample {w}/run --count " + HUGE: "not enough memory",
    "sample {w}/absent": "absent",
    "sample {w}/" + LONG: "File name too long",
    "sample {w}/pipe.safetensors": "cannot be read: it is no file",
    "sample {w}/good.npz": "good.npz cannot be read",
    "sample {w}/wide": "does not say how its models are built",
    "sample {w}/bare": "does not say how its models are built",
    "sample {w}/run --out {w}/file": "cannot write to --out",
    "export {w}/run {w}/folder.pt2": "Is a directory",
    "export {w}/run {w}/full.pt2": "No space left on device",
    "export {w}/run {w}/full.safetensors": "No space left on device",
    "export {w}/run /proc/generator.pt2": "cannot write to file /proc/generator.pt2",
    "export {w}/run {w}/absent/generator.pt2": "No such file or directory",
    "export {w}/run {w}/" + LONG + ".pt2": "File name too long",
    "export {w}/run {w}/generator.gif": "must end in one of .pt2, .onnx, .safetensors",
    "classify --data npz:{w}/unlabelled.npz": "has no labels",
    "classify --data npz:{w}/one_class.npz": "has one class only (0)",
    "classify --data folder:{w}/cats_only": "has one class only (cats)",
    "classify --data npz:{w}/good.npz --device cpu:5": "there is one CPU",
    "augment --data npz:{w}/good.npz --labels 1": "1 label for 2 classes: each needs one",
    "anomaly --data npz:{w}/good.npz --normal 7 --out {w}/a": "has no class '7'; it has 0, 1",
    "anomaly --model {w}/pipe.safetensors --score {w} --out {w}/a.csv": "it is no file",
    "anomaly --model {w}/run/checkpoint-00000002.safetensors --score {w} --out {w}/a": "detector",
    "edit project {w}/run {w}/pipe.png": "pipe.png: no such image",
    "edit project {w}/run {w}/" + LONG: "File name too long",
    "edit inpaint {w}/run {w}/run/samples.png --mask {w}/absent.png": "absent.png",
    "bench ops --json {w}": "Is a directory",
    "bench ops --json /proc/results.jsonl": "cannot write to file /proc/results.jsonl",
    "bench ops --plot {w}/plot.xyz": "plot.xyz must end in .png",
    "bench ops --roofline {w}/absent/plot.png": "No such file or directory",
    "bench ops --device cpu:5": "there is one CPU",
    "bench ops --device 7": "--device 7 is not available",
    "bench losses --dtype bfloat16": "bench losses has no use for --dtype",
    "bench losses --layout channels-last": "bench losses has no use for --layout",
    "bench step --passes forward": "bench step has no use for --passes",
    "bench step --shapes 64x3x64": "a step's shape is NxCxSxS",
    "verify --json /proc/rows.jsonl": "cannot write to file /proc/rows.jsonl",
    "verify --device cpu:5": "there is one CPU",
    "verify --model builtins:exit --input 2x3": "is neither a function nor an nn.Module's class",
    "verify --model os:_exit --input 2x3": "is neither a function nor an nn.Module's class",
    "verify --model torch.nn:Identity --input 2x3x": "must be sizes such as 64x128x8x8",
}  # fmt: skip


@pytest.mark.parametrize("words", CASES)
def test_one_line_and_exit_code_2(
    words: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in world.iterdir())
    code = main(words.format(w=world).split())
    lines = capsys.readouterr().err.splitlines()
    with capsys.disabled():
        if os.environ.get("GANFAST_SHOW_BAD_INPUT"):
            shown = [text.replace(LONG, "aaa...").replace(str(world), "...") for text in lines]
            print(f"\n| `ganfast {words.replace(LONG, 'aaa...')}` | {code} | {' '.join(shown)} |")
    assert code == 2, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("ganfast: error: ")
    assert CASES[words] in lines[0]
    assert sorted(p.name for p in world.iterdir()) == before  # nothing was begun


@pytest.fixture
def few_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "UPDATES", 2)


@pytest.mark.usefixtures("few_updates")
def test_labels_with_gaps_and_none(world: Path, tmp_path: Path) -> None:
    """Large numbers and -1, which is no label, are what an archive may have."""
    with np.load(world / "good.npz") as good:
        x, y = good["x"], good["y"]
    labels = np.where(np.arange(24) % 3, np.where(y, 10**12, 7), -1)
    np.savez(tmp_path / "gaps.npz", x=x, y=labels)
    data = f"--data npz:{tmp_path}/gaps.npz"
    words = f"train {data} --steps 2 --quality-every 2 {TINY} --out {tmp_path}/run"
    assert main(words.split()) == 0
    assert (tmp_path / "run" / "best.safetensors").exists()
    words = f"classify {data} --image-size 16 --labels 4 --steps 2 --batch-size 4 --width 4"
    assert main([*words.split(), "--seeds", "0", "--out", str(tmp_path / "classify")]) == 0


@pytest.mark.usefixtures("few_updates")
def test_a_damaged_table_is_read_as_far_as_it_goes(world: Path, tmp_path: Path) -> None:
    words = f"train --data npz:{world}/good.npz --quality-every 1 {TINY} --out {tmp_path}/run"
    assert main([*words.split(), "--steps", "1"]) == 0
    table = tmp_path / "run" / "quality.csv"
    table.write_bytes(table.read_bytes() + b"x,nan\n\xff\xfe,\0\n2\n3,4,5\n,,\n")
    assert main(["train", "--resume", "--out", f"{tmp_path}/run", "--steps", "2"]) == 0
    assert [line.split(",")[0] for line in table.read_text().split()] == ["step", "1", "2"]


def test_names_that_are_no_utf8(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"bilder-\xff")
    for name in (b"caf\xe9", b"th\xe9"):
        (folder / os.fsdecode(name)).mkdir(parents=True)
        for number in range(8):
            pixels = np.full((16, 16), 10 * number, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / os.fsdecode(name) / f"{number}.png")
    words = ["classify", "--data", f"folder:{folder}", "--out", str(folder / "out")]
    words += [
        "--image-size",
        "16",
        "--labels",
        "4",
        "--steps",
        "2",
        "--batch-size",
        "4",
        "--width",
        "4",
        "--seeds",
        "0",
    ]
    assert main(words) == 0
    words = f"train --data folder:{folder} --steps 2 --quality-every 0 --channels 1 {TINY}"
    assert main([*words.split(), "--out", str(folder / "run")]) == 0
    assert main(["sample", str(folder / "run"), "--count", "1"]) == 0


def paths(value: Any, path: tuple[Any, ...] = ()) -> Any:
    """Yield the way to every part of a state."""
    yield path
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            yield from paths(part, (*path, key))


def changed(value: Any, path: tuple[Any, ...], junk: Any) -> Any:
    """Return a copy with one part replaced, or removed."""
    if not path:
        return junk
    items = dict(value.items() if isinstance(value, dict) else enumerate(value))
    if len(path) == 1 and junk is REMOVED:
        del items[path[0]]
    else:
        items[path[0]] = changed(items[path[0]], path[1:], junk)
    return items if isinstance(value, dict) else type(value)(items.values())


REMOVED = object()
JUNK = [
    REMOVED, None, True, -1, 0, 10**6, 10**30, 0.5, float("nan"), "", "x", [], {}, (1, "a"),
    torch.zeros(()), torch.zeros(3), torch.zeros(2, 3, dtype=torch.int64), torch.full((1,), -1.0),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo asks, where compile was forged
@pytest.mark.parametrize("seed", range(int(os.environ.get("GANFAST_FUZZ_EXAMPLES", "25"))))
def test_forged_states_with_valid_checksums(seed: int, world: Path, tmp_path: Path) -> None:
    rng = random.Random(seed)
    state = load_newest(world / "run")[1]
    # A part of the state first, for most of its leaves are weights.
    part = rng.choice(list(state))
    ways = [(part, *path) for path in paths(state[part])]
    junk = rng.choice(JUNK)
    forged = changed(state, rng.choice(ways), junk)
    step = forged.pop("step", 2)
    run = tmp_path / "run"
    run.mkdir()
    write_checkpoint(run / "checkpoint-00000002.safetensors", step, forged)
    for words in (f"sample {run} --count 1", f"train --resume --out {run} --steps 3"):
        assert main(words.split()) in (0, 2)


def test_forged_bytes(world: Path, tmp_path: Path) -> None:
    whole = next((world / "run").glob("checkpoint-*")).read_bytes()
    rng = random.Random(0)
    path = tmp_path / "checkpoint-00000002.safetensors"
    header = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 20))):
            content[rng.randrange(rng.choice((8, 200, header)))] = rng.choice(
                b'0129"{}[],:aF\xff\0'
            )
        path.write_bytes(content)
        with contextlib.suppress(CheckpointError):
            load_checkpoint(path)
            continue
        refused += 1
    assert refused > 250
