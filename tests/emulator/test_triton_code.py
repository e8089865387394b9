"""Every kernel that the host side of the Triton backend launches, compiled for GPUs without one.

``python -m pytest -m "" -s tests/emulator/test_triton_code.py`` prints registers and shared memory.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import INTERPRETED

from ganfast.ops import triton_launch

if triton_launch.why_not("cuda") or INTERPRETED:
    pytest.skip("Triton does not compile here", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ganfast.ops.batch_norm_act import triton as batch_norm_act
from ganfast.ops.losses import triton as losses

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
DTYPES |= {torch.float64: "fp64", torch.int64: "i64"}
# On chip, in parts, a batch of vectors, image sizes that no vector fits, more than 2^31 elements.
SHAPES = [(64, 256, 4, 4), (128, 64, 32, 32)]
SLOW_SHAPES = [(64, 1024), (9, 33, 5, 5), (2**14, 3, 256, 256)]


def slow(*values):
    """Return parameters of a test that are left to `make test-all`."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.fixture
def launches(monkeypatch):
    """Record what is launched instead of launching it; tensors need no memory."""
    recorded = []

    def record(kernel, grid, on, *arguments, **constants):
        recorded.append((kernel, arguments, constants))

    for module in (batch_norm_act, losses):
        monkeypatch.setattr(module, "launch", record)
    return recorded


def compiled(kernel, arguments, constants, capability):
    """Compile a launch, its arguments specialised as Triton would."""
    constants = dict(constants)
    options = {"num_warps": constants.pop("num_warps", 4), "enable_fp_fusion": False}
    names = kernel.arg_names
    values = dict(zip(names, arguments, strict=False)) | constants
    signature, fixed, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        name, value = parameter.name, values[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + DTYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif (
            name in constants
            or value is None
            or (value == 1 and not parameter.annotation_type and not parameter.do_not_specialize)
        ):
            signature[name], fixed[(i,)] = "constexpr", value
        elif parameter.annotation_type:
            signature[name] = parameter.annotation_type
        elif parameter.do_not_specialize:
            signature[name] = "i32" if value < 2**31 else "i64"
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, fixed, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def check_resources(code, capability, tmp_path):
    """Hold a kernel to the shared memory of the chip, and to registers without spilling."""
    assert code.metadata.shared <= SHARED_BYTES[capability]
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(code.asm["cubin"])
    said = subprocess.run([CUOBJDUMP, "-res-usage", cubin], capture_output=True, text=True).stdout
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", said).groups())
    name, warps = code.metadata.name, code.metadata.num_warps
    print(
        f"{name:28} {warps:2} warps {registers:3} registers {code.metadata.shared:6} bytes shared"
    )
    # The slow path of a division of doubles, a function of its own, keeps one number in memory.
    assert stack <= 8, f"{name} spills registers"
    assert registers * 32 * warps <= 65536


def accesses(code, which):
    """Return how wide the tile's accesses are: the widest of each instruction of this kind."""
    lines = [line for line in code.asm["ptx"].splitlines() if which in line]
    found = [re.search(r"(?:\.v(\d))?\.[bfu](\d+) ", line) for line in lines]
    return [int(m[1] or 1) * int(m[2]) // 8 for m in found]


def layer_calls(shape, dtype, channels_last, **options):
    """Call all four ops of a layer on tensors without memory."""
    kwargs = {"device": "meta", "dtype": dtype}
    x = torch.empty(shape, **kwargs)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    vector = torch.empty(shape[1], device="meta", dtype=wide)
    count = torch.empty((), device="meta", dtype=torch.int64)
    act = (options.get("activation", "leaky_relu"), 0.2, options.get("order", "norm_act"))
    splits, training = options.get("splits", 1), options.get("training", True)
    _, stats = batch_norm_act.train(
        x, vector, vector, vector, vector, count, options.get("momentum", 0.1), 1e-5,
        *act, splits,
    )  # fmt: skip
    batch_norm_act.evaluate(x, vector, vector, vector, vector, 1e-5, *act)
    constants = (x, vector, stats, 1e-5, training, *act)
    batch_norm_act.backward(x, *constants, True, True)
    batch_norm_act.double_backward(x, vector, vector, x, *constants)


@pytest.mark.parametrize("capability", [*slow(80), 90])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, *slow(*SLOW_SHAPES)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, *slow(torch.bfloat16, torch.float64)], ids=str)
def test_layers_compile_and_fit(launches, tmp_path, capability, channels_last, shape, dtype):
    if channels_last and len(shape) == 2:
        pytest.skip("two dimensions have one layout")
    if capability == 80 and dtype == torch.float64:
        pytest.skip("as on 9.0")
    layer_calls(shape, dtype, channels_last)
    assert 4 <= len(launches) <= 7
    for launch in launches:
        check_resources(compiled(*launch, capability), capability, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"activation": "relu", "order": "act_norm"}, {"activation": None}, {"momentum": None},
        {"splits": 2}, {"splits": 2, "momentum": None, "order": "act_norm"}, {"training": False},
    ],
    ids=str,
)  # fmt: skip
def test_every_option_compiles(launches, tmp_path, options):
    for shape in SHAPES:
        layer_calls(shape, torch.float32, False, **options)
    for launch in launches:
        check_resources(compiled(*launch, 90), 90, tmp_path)


def test_a_channel_may_have_2_to_the_31_values(launches):
    """So that number is computed in 64 bits: no product of 32 bits is widened."""
    layer_calls((2**16, 1, 2**8, 2**8), torch.bfloat16, False)
    for launch in launches:
        code = compiled(*launch, 90)
        assert "arith.extsi %N" in code.asm["ttir"], code.metadata.name
        assert not re.search(r"arith.muli %N.* : i32", code.asm["ttir"]), code.metadata.name


def test_a_smaller_last_batch_takes_the_same_code(launches):
    """Sizes that follow from the batch are not specialised on their divisibility or on 1."""
    for batch in (128, 127):
        layer_calls((batch, 64, 32, 32), torch.float32, False)
    half = len(launches) // 2
    for one, other in zip(launches[:half], launches[half:], strict=True):
        keys = []
        for kernel, arguments, constants in (one, other):
            specialised = [
                value % 16 == 0 or value
                for value, parameter in zip(arguments, kernel.params, strict=False)
                if isinstance(value, int) and not parameter.do_not_specialize
            ]
            keys.append((kernel, specialised, constants))
        assert keys[0] == keys[1]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, *slow(torch.bfloat16)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tiles_are_read_and_written_16_bytes_at_a_time(launches, channels_last, dtype, shape):
    layer_calls(shape, dtype, channels_last)
    for kernel, arguments, constants in launches:
        code = compiled(kernel, arguments, constants, 90)
        # A lane's values, by the bytes of one, over 16: per tensor at least so many accesses.
        values = constants["BLOCK_M"] * constants["BLOCK_C"] // (32 * constants["num_warps"])
        needed = max(1, values * dtype.itemsize // 16)
        tensors = [n for n in ("x", "dy", "ddx") if n in kernel.arg_names]
        written = [n for n in ("y", "dx", "d_dy", "d_x") if n in kernel.arg_names]
        name = code.metadata.name
        assert accesses(code, "ld.global").count(16) >= needed * len(tensors), name
        assert accesses(code, "st.global").count(16) >= needed * len(written), name


@pytest.mark.parametrize("dtype", [torch.float32, *slow(torch.bfloat16, torch.float64)], ids=str)
@pytest.mark.parametrize("size", [*slow(64), 2**20])
def test_losses_compile_and_fit(launches, tmp_path, dtype, size):
    x = torch.empty(size, device="meta", dtype=dtype)
    for from_logits in (False, True):
        for target in (None, x):
            for reduction in ("none", "mean", "sum"):
                operands = (x, target, 0.9, target, target if from_logits else None)
                y = losses.binary_cross_entropy(*operands, from_logits, reduction)
                losses.binary_cross_entropy_backward(y, *operands, from_logits, reduction)
    for form in ("probabilities", "logits", "squared", "hinge", "linear"):
        for fake, splits in ((x, 1), (None, 2), (None, 1)):
            loss, *_ = losses.gan_loss(x, fake, form, 1.0, 0.0, splits)
            losses.gan_loss_backward(loss, x, fake, form, 1.0, 0.0, splits, True, True)
    for launch in launches:
        check_resources(compiled(*launch, 90), 90, tmp_path)
