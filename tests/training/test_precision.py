"""Which precisions are native, and what happens to those that are not."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("tqdm")

from ganfast import machine
from ganfast.bench.peers import why_missing
from ganfast.cli import main
from ganfast.models import mlp_gan
from ganfast.nn import GANLoss
from ganfast.training import GANStep

X86 = pytest.mark.parametrize(
    ("capability", "flags", "variables", "expected"),
    [
        ("AVX512", "avx512f avx512_bf16", {}, ("bf16", "fp32")),
        ("AVX512", "avx512f amx_bf16 avx512_fp16", {}, ("bf16", "fp16", "fp32")),
        ("AVX512", "avx512f", {}, ("fp32",)),
        ("AVX2", "avx2 avx512_bf16", {}, ("fp32",)),
        ("AVX512", "avx512_bf16", {"ONEDNN_MAX_CPU_ISA": "avx2"}, ("fp32",)),
        ("AVX512", "avx512_bf16", {"DNNL_MAX_CPU_ISA": "AVX512_CORE"}, ("fp32",)),
        ("AVX512", "avx512_bf16", {"ONEDNN_MAX_CPU_ISA": "DEFAULT"}, ("bf16", "fp32")),
        (
            "AVX512", "avx512_bf16 avx512_fp16", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
            ("bf16", "fp32"),
        ),
    ],
)  # fmt: skip


@pytest.fixture
def processor(monkeypatch):
    """Return a function that has this processor look like another one."""

    def become(flags, capability="AVX512", kind="x86_64", variables=()):
        for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", machine.ALLOW_EMULATED):
            monkeypatch.delenv(name, raising=False)
        for name, value in dict(variables).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(machine, "_flags", lambda: frozenset(flags.split()))
        monkeypatch.setattr(machine.platform, "machine", lambda: kind)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)

    return become


def make_step(**options) -> GANStep:
    gan = mlp_gan(16, 1, 6, 4)
    adams = [torch.optim.Adam(m.parameters()) for m in gan[:2]]
    return GANStep(*gan[:2], *adams, GANLoss(), gan.latent, **options)


@X86
def test_instructions_decide_what_is_native(processor, capability, flags, variables, expected):
    processor(flags, capability, variables=variables)
    assert machine.native_precisions("cpu") == expected


def test_arm64_says_so_in_features(processor, monkeypatch):
    for features, expected in (("fp asimd bf16", ("bf16", "fp32")), ("fp asimd", ("fp32",))):
        processor(features, "DEFAULT", "aarch64")
        assert machine.native_precisions("cpu") == expected
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    processor_has_no_onednn = machine.native_precisions("cpu")
    assert processor_has_no_onednn == ("fp32",)


@pytest.mark.parametrize("key", ["flags", "Features"])
def test_flags_are_read_from_the_system(tmp_path, monkeypatch, key):
    text = f"processor\t: 0\n{key}\t\t: one two\n\nprocessor\t: 1\n{key}\t\t: one two\n"
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / path.rpartition("/")[2])
    machine._cpuinfo.cache_clear()
    assert machine._flags() == {"one", "two"}
    machine._cpuinfo.cache_clear()
    (tmp_path / "cpuinfo").unlink()
    assert machine._flags() == frozenset()
    machine._cpuinfo.cache_clear()


@pytest.mark.parametrize(
    ("capability", "bf16", "expected"),
    [
        ((9, 0), True, ("bf16", "fp16", "fp32")),
        ((7, 5), False, ("fp16", "fp32")),
        ((6, 1), False, ("fp32",)),
    ],
)
def test_tensor_cores_decide_on_gpus(monkeypatch, capability, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert machine.native_precisions("cuda") == expected


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_refuses_what_is_emulated(processor, monkeypatch, precision):
    processor("avx2", "AVX2")
    said = rf"{precision}.* needs instructions .* \(AVX2\) has fp32; use precision='fp32'"
    with pytest.raises(ValueError, match=said):
        make_step(precision=precision)
    monkeypatch.setenv(machine.ALLOW_EMULATED, "1")
    assert make_step(precision=precision).precision == precision


def test_auto_takes_the_best_that_is_native(processor):
    for flags, expected in (("amx_bf16 amx_fp16", "bf16"), ("amx_fp16", "fp16"), ("", "fp32")):
        processor(flags)
        assert make_step(precision="auto").precision == expected
    processor("amx_fp16")
    assert make_step(precision="auto", r1=1.0).precision == "fp32"  # fp16 takes no penalty


def test_the_command_stops_with_code_2(processor, tmp_path, capsys):
    for package in ("torchvision", "matplotlib", "safetensors"):
        pytest.importorskip(package)
    processor("avx2", "AVX2")
    command = ["train", "--device", "cpu", "--image-size", "16", "--width", "4", "--steps", "1"]
    command += ["--batch-size", "4", "--quality-every", "0", "--out", str(tmp_path)]
    assert main([*command, "--precision", "bf16"]) == 2
    assert "has fp32; use precision='fp32'" in capsys.readouterr().err
    assert main([*command, "--precision", "auto"]) == 0
    from ganfast.training import load_newest

    assert load_newest(tmp_path)[1]["options"]["precision"] == "fp32"


def test_info_lists_them(processor, capsys):
    processor("avx512_bf16")
    assert main(["info"]) == 0
    assert "native precisions on cpu: bf16, fp32" in capsys.readouterr().out


def test_bench_leaves_emulated_rows_out(processor):
    peers = ("bf16", "all-bf16")
    processor("avx512_bf16")
    assert not any(why_missing(peer, peers, "cpu") for peer in peers)
    processor("avx2", "AVX2")
    assert all("no bfloat16 instructions" in why_missing(peer, peers, "cpu") for peer in peers)
