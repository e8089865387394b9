"""`ganfast export`: what is written runs without ganfast and gives the run's images."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

for package in ("torchvision", "matplotlib", "tqdm", "safetensors"):
    pytest.importorskip(package)

from ganfast import nn as fast  # noqa: E402
from ganfast.cli import main  # noqa: E402
from ganfast.models import dcgan, stock  # noqa: E402
from ganfast.training import load_run  # noqa: E402


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    images = numpy.random.default_rng(0).integers(0, 256, (16, 16, 16), dtype=numpy.uint8)
    numpy.savez(out / "images.npz", x=images)
    words = ["--data", f"npz:{out / 'images.npz'}", "--image-size", "16", "--width", "4"]
    words += ["--latent", "6", "--batch-size", "8", "--steps", "3", "--ema", "0.5"]
    assert main(["train", "--out", str(out / "run"), *words]) == 0
    return out / "run"


def test_an_exported_program_runs_without_ganfast(trained, tmp_path, capsys):
    assert main(["export", str(trained), str(tmp_path / "generator.pt2")]) == 0
    assert "generator of step 3" in capsys.readouterr().out
    latent = torch.randn(5, 6, 1, 1)
    torch.save(latent, tmp_path / "latent.pt")
    code = (
        "import sys; sys.modules['ganfast'] = None\n"
        "import torch\n"
        "generator = torch.export.load('generator.pt2').module()\n"
        "torch.save(generator(torch.load('latent.pt')), 'images.pt')\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, check=True)
    expected = load_run(trained)[0].generator(latent)
    torch.testing.assert_close(torch.load(tmp_path / "images.pt"), expected)


def test_weights_are_written_under_their_names(trained, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    assert main(["export", str(trained), str(tmp_path / "generator.safetensors")]) == 0
    found = safetensors.load_file(tmp_path / "generator.safetensors")
    expected = load_run(trained)[0].generator.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is not None, reason="onnxscript is here")
def test_onnx_names_the_package_it_needs(trained, tmp_path, capsys):
    assert main(["export", str(trained), str(tmp_path / "generator.onnx")]) == 2
    assert "onnxscript" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "said"), [("generator.pth", ".pt2, .onnx"), ("no/such/x.pt2", "No such file")]
)
def test_bad_files_are_refused(trained, tmp_path, capsys, file, said):
    assert main(["export", str(trained), str(tmp_path / file)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_stock_models_have_torchs_layers_and_the_same_numbers():
    torch.manual_seed(0)
    gan = dcgan(image_size=16, channels=1, width=4, latent=6)
    for network, x in ((gan.generator, torch.randn(3, 6, 1, 1)), (gan.discriminator, None)):
        x = gan.generator(torch.randn(3, 6, 1, 1)).detach() if x is None else x
        copied = stock(network)
        assert not any(type(m).__module__.startswith("ganfast.nn") for m in copied.modules())
        torch.testing.assert_close(copied(x), network(x))
        torch.testing.assert_close(copied.eval()(x), network.eval()(x))


def test_stock_keeps_order_mode_and_dtype():
    layer = fast.BatchNorm1d(3, activation="leaky_relu", negative_slope=0.3, order="act_norm")
    layer.double().eval()
    act, norm = stock(layer)
    assert (type(act), act.negative_slope, type(norm)) == (nn.LeakyReLU, 0.3, nn.BatchNorm1d)
    assert (norm.weight.dtype, norm.training) == (torch.float64, False)
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(norm(act(x)), layer(x))
    with pytest.raises(ValueError, match="set splits to 1"):
        stock(fast.BatchNorm2d(3, splits=2))


@pytest.mark.parametrize("order", ["norm_act", "act_norm"])
def test_stock_keeps_the_norm_where_there_is_no_activation(order):
    layer = fast.BatchNorm1d(3, activation=None, order=order)
    copied = stock(layer)
    assert type(copied) is nn.BatchNorm1d
    x = torch.randn(4, 3)
    torch.testing.assert_close(copied(x), layer(x))
