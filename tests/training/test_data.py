"""Data: every source's values and layout, every bad input's message, the order of batches."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import ROOT

pytest.importorskip("torchvision")
Image = pytest.importorskip("PIL.Image")

from ganfast.training import Batches, DataError, ImageData, load_images  # noqa: E402


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write bytes in the format of http://yann.lecun.com/exdb/mnist/."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root: Path, folder: str = "MNIST", count: int = 6) -> np.ndarray:
    """Write a data set of random pixels, labelled 0, 1, 2, ... modulo 10."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        write_idx(root / folder / "raw" / f"{part}-images-idx3-ubyte", pixels)
        write_idx(root / folder / "raw" / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return pixels


def write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def plain(value: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def numbered(count: int) -> ImageData:
    """Make images of one pixel, each with its own value."""
    return ImageData("numbered", torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1))


def numbers(batch: torch.Tensor) -> list[int]:
    return [round((x + 1) * 127.5) for x in batch.flatten().tolist()]


# --- sources ---


def test_digits_are_scikit_learns_scans() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    data = load_images("digits")
    assert (data.name, len(data), data.image_shape) == ("digits", 1797, (1, 32, 32))
    assert data.images.dtype == torch.uint8
    assert data.images.max() == 255
    assert data.images.min() == 0
    assert data.labels is not None
    assert data.labels.bincount().tolist() == np.bincount(datasets.load_digits().target).tolist()
    scans = load_images("digits", image_size=8).images[:, 0].double()
    expected = torch.from_numpy(datasets.load_digits().images) * 255 / 16
    assert (scans - expected).abs().max() <= 0.5


@pytest.mark.parametrize(
    ("spec", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")]
)
def test_mnist_is_read_as_torchvision_stores_it(tmp_path: Path, spec: str, folder: str) -> None:
    pixels = write_mnist(tmp_path, folder)
    data = load_images(spec, root=tmp_path)
    assert torch.equal(data.images, torch.from_numpy(pixels).unsqueeze(1))
    assert data.labels is not None
    assert data.labels.tolist() == list(range(6))
    assert load_images(spec, root=tmp_path, image_size=32, channels=3).image_shape == (3, 32, 32)


def test_folder_is_searched_deeply_and_read_in_order(tmp_path: Path) -> None:
    write_image(tmp_path / "b" / "2.PNG", plain(20))
    write_image(tmp_path / "a.png", plain(10))
    write_image(tmp_path / "b" / "c" / "3.bmp", plain(30))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._a.png").write_bytes(b"left behind by an operating system")
    data = load_images(f"folder:{tmp_path}", image_size=4)
    assert data.images.shape == (3, 3, 4, 4)
    assert data.images[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert load_images(f"folder:{tmp_path}", image_size=4, channels=1).image_shape == (1, 4, 4)


def test_folder_images_are_cropped_at_the_centre(tmp_path: Path) -> None:
    wide = plain(0, 8, 24)
    wide[:, 8:16] = [200, 100, 50]
    write_image(tmp_path / "wide.png", wide)
    images = load_images(f"folder:{tmp_path}", image_size=8).images
    assert torch.equal(images, torch.tensor([200, 100, 50]).reshape(1, 3, 1, 1).expand(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((5, 6, 6, 3), (3, 6, 6)), ((5, 3, 6, 6), (3, 6, 6)), ((5, 6, 6), (1, 6, 6))],
    ids=["NHWC", "NCHW", "NHW"],
)
def test_npz_layouts(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=pixels, y=np.arange(5, dtype=np.uint8))
    data = load_images(f"npz:{tmp_path / 'x.npz'}")
    assert data.image_shape == expected
    assert data.labels is not None
    assert data.labels.dtype == torch.int64
    first = np.moveaxis(pixels[0], -1, 0) if shape[-1] == 3 else pixels[0].reshape(expected)
    assert np.array_equal(data.images[0].numpy(), first)


def test_npz_is_cropped_resized_and_recoloured(tmp_path: Path) -> None:
    pixels = np.zeros((2, 4, 12, 3), dtype=np.uint8)
    pixels[:, :, 4:8] = [255, 0, 0]
    np.savez(tmp_path / "x.npz", x=pixels)
    data = load_images(f"npz:{tmp_path / 'x.npz'}", image_size=8, channels=1)
    assert data.labels is None
    # 0.299: the weight of red in luminance (ITU-R BT.601)
    assert data.images.unique().tolist() == [round(0.2989 * 255)]
    assert data.image_shape == (1, 8, 8)


def test_real_mnist_when_at_hand() -> None:
    root = ROOT.parent / "shared" / "data"
    if not (root / "MNIST").exists():
        pytest.skip("no MNIST beside the project")
    assert load_images("mnist", root=root).images.shape == (60000, 1, 28, 28)


# --- bad input ---


def test_unknown_source_lists_the_known_ones() -> None:
    for spec in ("imagenet", "folder", "folder:", "npz:", ""):
        with pytest.raises(DataError, match="known: digits, mnist, fashion-mnist, cifar10, folder"):
            load_images(spec)


@pytest.mark.parametrize("spec", ["mnist", "fashion-mnist", "cifar10"])
def test_missing_data_set_says_how_to_get_it(tmp_path: Path, spec: str) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path}.*--root.*--download"):
        load_images(spec, root=tmp_path)


def test_truncated_mnist_is_an_error_of_ours(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    for content in (file.read_bytes()[:-100], file.read_bytes()[:6], b"", gzip.compress(b"x")):
        file.write_bytes(content)
        with pytest.raises(DataError, match="mnist"):
            load_images("mnist", root=tmp_path)


def test_bad_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name, message in (
        ("absent", "absent is not a folder"),
        ("file", "file is not a folder"),
        ("empty", "empty holds no images"),
    ):
        with pytest.raises(DataError, match=message):
            load_images(f"folder:{tmp_path / name}", image_size=8)
    with pytest.raises(DataError, match="needs an image size"):
        load_images(f"folder:{tmp_path}")


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "good.png", plain(1))
    whole = (tmp_path / "good.png").read_bytes()
    bad = tmp_path / "zz-bad.png"
    for content in (b"", b"no image", whole[: len(whole) // 2], whole[:20]):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"zz-bad\.png cannot be read"):
            load_images(f"folder:{tmp_path}", image_size=8)


def test_deep_pixels_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    write_image(tmp_path / "deep.png", np.full((8, 8), 40000, dtype=np.uint16))
    with pytest.raises(DataError, match=r"deep\.png.*more than 8 bits"):
        load_images(f"folder:{tmp_path}", image_size=8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": plain(0)}, "no array 'x' .its arrays: images"),
        ({"x": np.zeros((2, 4, 4, 3))}, r"must be uint8 .*got float64 \[2, 4, 4, 3\]"),
        ({"x": np.zeros((2, 4, 4, 5), np.uint8)}, r"1 or 3 channels, got uint8 \[2, 4, 4, 5\]"),
        ({"x": np.zeros(7, np.uint8)}, r"got uint8 \[7\]"),
        ({"x": np.zeros((0, 4, 4), np.uint8)}, "must not be empty"),
        ({"x": np.array([None, {}])}, "cannot be read"),  # would need pickle
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.zeros(3, int)}, "y must be 2 integers"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.zeros(2)}, "got float64"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_images(f"npz:{tmp_path / 'x.npz'}")


def test_unreadable_npz(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(DataError, match="no such file"):
        load_images(f"npz:{path}")
    np.savez_compressed(path, x=np.random.default_rng(0).integers(0, 255, (9, 9, 9), np.uint8))
    whole = path.read_bytes()
    middle = len(whole) // 2
    for content in (b"", b"text", whole[:-50], whole[:middle] + b"????" + whole[middle + 4 :]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            load_images(f"npz:{path}")
    with path.open("wb") as file:
        np.save(file, plain(0))
    with pytest.raises(DataError, match="bare array"):
        load_images(f"npz:{path}")


@pytest.mark.parametrize("options", [{"image_size": 0}, {"image_size": -8}, {"channels": 2}])
def test_bad_sizes(options: dict[str, int]) -> None:
    with pytest.raises(DataError, match=r"must be .*got"):
        load_images("digits", **options)


# --- batches ---


def test_pixels_are_mapped_to_minus_one_to_one() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
    batch = next(Batches(ImageData("three", pixels), 3))
    assert batch.dtype == torch.float32
    assert sorted(batch.flatten().tolist()) == pytest.approx([-1, -0.6, 1])


def test_every_image_comes_once_an_epoch_in_a_new_order() -> None:
    batches = Batches(numbered(12), 4)
    assert batches.batches_per_epoch == 3
    epochs = [[n for _ in range(3) for n in numbers(next(batches))] for _ in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_images_that_fill_no_batch_wait() -> None:
    batches = Batches(numbered(11), 4)
    epochs = [[n for _ in range(2) for n in numbers(next(batches))] for _ in range(40)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert {n for epoch in epochs for n in epoch} == set(range(11))


def test_order_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = numbers(next(Batches(numbered(50), 50, seed=3)))
    torch.manual_seed(2)
    assert numbers(next(Batches(numbered(50), 50, seed=3))) == first
    assert numbers(next(Batches(numbered(50), 50, seed=4))) != first


@pytest.mark.parametrize("taken", range(8))
def test_saved_state_continues_the_order(taken: int) -> None:
    batches = Batches(numbered(11), 4, seed=5)
    for _ in range(taken):
        next(batches)
    state = batches.state_dict()
    rest = [numbers(next(batches)) for _ in range(9)]
    other = Batches(numbered(11), 4, seed=99)
    next(other)
    other.load_state_dict(state)
    assert [numbers(next(other)) for _ in range(9)] == rest


def test_state_of_other_data_is_refused() -> None:
    state = Batches(numbered(11), 4).state_dict()
    with pytest.raises(DataError, match="images = 11, now images = 12"):
        Batches(numbered(12), 4).load_state_dict(state)
    with pytest.raises(DataError, match="batch_size = 4, now batch_size = 5"):
        Batches(numbered(11), 5).load_state_dict(state)


def test_images_of_other_bytes_or_shape_are_refused() -> None:
    images = torch.arange(24, dtype=torch.uint8).reshape(4, 1, 2, 3)
    state = Batches(ImageData("saved", images), 4).state_dict()
    changed = images.clone()
    changed[-1, ..., -1] += 1
    for other in (changed, images.reshape(4, 1, 3, 2)):
        with pytest.raises(DataError, match="fingerprint"):
            Batches(ImageData("other", other), 4).load_state_dict(state)


@pytest.mark.parametrize(("size", "message"), [(0, "positive"), (12, "numbered, which has 11")])
def test_bad_batch_sizes(size: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Batches(numbered(11), size)
