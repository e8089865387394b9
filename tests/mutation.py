"""Break each formula of the kernels in one place at a time, and see a test turn red each time.

Usage::

    python tests/mutation.py                    # every backend that can be built here
    python tests/mutation.py --backend eager    # seconds a mutation; native compiles as well
    python tests/mutation.py --only eps slope   # by name
    python tests/mutation.py --list

Works in a temporary copy of the repository. The native extension is compiled there with less
optimisation, for one instruction set. The exit code is 1 where a mutation survives its tests.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
TIME_LIMIT = 600  # seconds, for one run of the tests; a mutated loop may not end

LAYER = ("batch_norm_act",)
LOSSES = ("binary_cross_entropy", "gan_loss")
TESTS_OF = {  # what each file is part of
    "ganfast/activation.py": LAYER,
    "ganfast/ops/batch_norm_act/eager.py": LAYER,
    "ganfast/ops/binary_cross_entropy/eager.py": LOSSES[:1],
    "ganfast/ops/gan_loss/eager.py": LOSSES[1:],
    "csrc/activation.h": LAYER,
    "csrc/batch_norm_act/cpu_ops.h": LAYER,
    "csrc/batch_norm_act/cpu_walks.h": LAYER,
    "csrc/batch_norm_act/cpu_kernels_impl.h": LAYER,
    "csrc/batch_norm_act/cpu_plan.h": LAYER,
    "csrc/batch_norm_act/cpu.cpp": LAYER,
    "csrc/batch_norm_act/cpu_backward.cpp": LAYER,
    "csrc/loss.h": LOSSES,
    "csrc/simd_math.h": LOSSES,
    "csrc/loss_kernels_impl.h": LOSSES,
    "csrc/loss_plan.h": LOSSES,
    "csrc/binary_cross_entropy/cpu.cpp": LOSSES[:1],
    "csrc/gan_loss/cpu.cpp": LOSSES[1:],
}

# A file, then its mutations: name | old text, which must occur once | new text.
TABLE = """
ganfast/activation.py
slope | torch.nn.functional.leaky_relu, | lambda z, slope: torch.where(z > 0, z, 1.01 * slope * z),
NaN through relu | torch.relu(z) | torch.where(z > 0, z, 0.0)
mask at zero, relu | torch.ops.aten.threshold_backward.default(dy, z, 0.0) | dy * (z >= 0)
mask at zero, leaky_relu | leaky_relu_backward.default(dy, z, slope | leaky_relu_backward.default(dy, z + 1e-30, slope

ganfast/ops/batch_norm_act/eager.py
eps | mean, unbiased_var, True, 1.0, eps | mean, unbiased_var, True, 1.0, 2 * eps
M/(M-1) | _follow(running_var, unbiased_var, step) | _follow(running_var, rstd.pow(-2) - eps, step)
momentum | (1 - step) * running.to(batch.dtype) + step | step * running.to(batch.dtype) + (1 - step)
momentum None | num_batches_tracked.to(u.dtype).reciprocal() | (num_batches_tracked + 1).to(u.dtype).reciprocal()
splits order | t.reshape(splits, images, channels, positions) | t.reshape(images, splits, channels, positions).transpose(0, 1)
eps in evaluation | mean, var, False, 0.0, eps)[0] | mean, var, False, 0.0, 2 * eps)[0]
rstd saved in evaluation | (var + eps).rsqrt(), weight, bias | var.rsqrt(), weight, bias
mask of backward | torch.addcmul(shift, xs, scale) | xs * scale
mean in dweight | dweight = (g * (u - mean) * rstd) | dweight = (g * u * rstd)
splits in dweight | torch.stack([chunk[i] for chunk in chunks]).sum(0) | chunks[0][i]
mask of dx, act_norm | du = gate(du, xs, negative_slope) | du = gate(du, xs - mean, negative_slope)
mean of d_dy | (v - mean_v - h * mean_vh) + p * h | (v - h * mean_vh) + p * h
v h in e | (v * mean_gh + g * mean_vh) | (v * mean_gh)
last term of d_x | (mean_eh + w * rstd * s / count) | mean_eh
splits in d_weight | (rstd * s).sum(0).flatten() | (rstd * s)[0].flatten()
statistics of the third derivative | live_mean.reshape(scale.shape), (var + eps).rsqrt() | live_mean.reshape(scale.shape), rstd

ganfast/ops/binary_cross_entropy/eager.py
label | torch.full_like(u, label) | torch.full_like(u, float(label > 0.5))
pos_weight | u.sigmoid() * (positive + (1 - t)) | u.sigmoid()
smallest denominator | SMALLEST_DENOMINATOR = 9.999999960041972e-13 | SMALLEST_DENOMINATOR = 1e-12
factor 1/n | dy = dy / x.numel() | dy = dy / x.shape[-1]
weight | else dy * weight.to(dy.dtype) | else dy
log clamp of the target | (-u).log1p() - u.log() | (-u).log1p().clamp_min(-100) - u.log().clamp_min(-100)

ganfast/ops/gan_loss/eager.py
label | _loss(second, kind, fake_label) | _loss(second, kind, 1 - real_label)
score | (x.sigmoid() if kind == "logits" else x) | x
splits order | (real_label, fake_label), strict | (fake_label, real_label), strict
squared | 2 * (u - label) | (u - label)
hinge corner | (1 - label * u <= 0) | (1 - label * u < 0)
NaN at the hinge | (1 - label * u <= 0).logical_not() | (1 - label * u > 0)
factor 1/n | slope * (dloss / x.numel() | slope * (dloss / x.shape[-1]

csrc/activation.h
slope | z > V{} ? z : z * slope | z > V{} ? z : z * (slope * 1.01f)
NaN through relu | return z < V{} ? V{} : z; | return z > V{} ? z : V{};
mask at zero, relu | z <= V{} ? V{} : dy | z < V{} ? V{} : dy
mask at zero, leaky_relu | z > V{} ? dy : dy * slope | z >= V{} ? dy : dy * slope

csrc/batch_norm_act/cpu_ops.h
mask of backward | gate<A>(dy, multiply_add(x, k[1], k[2]), slope) | gate<A>(dy, x * k[1], slope)
mean of dx | deviation(in[0], k, slope) * k[3] + k[4] | deviation(in[0], k, slope) * k[3]
mask of ddx, act_norm | act_norm ? gate<A>(ddx, x, slope) : ddx | ddx
mask of d_dy | d_g : gate<A>(d_g, multiply_add(in[0], k[1], k[2]), slope) | d_g : d_g

csrc/batch_norm_act/cpu_walks.h
missing tail of sums | if (p < length) { | if (p + 1 < length) {
missing tail of y | if (p < P) map_vector | if (p + 1 < P) map_vector
missing tail of channels | c < range.channel_end; c += L | c + 1 < range.channel_end; c += L
runs in float | constexpr int64_t run_length = 32; | constexpr int64_t run_length = 1 << 20;

csrc/batch_norm_act/cpu_kernels_impl.h
eps | (var < 0 ? 0 : var) + k.eps | (var < 0 ? 0 : var) + 2 * k.eps
eps in evaluation | __builtin_sqrt(var[c] + k.eps) | __builtin_sqrt(var[c])
far guess | trusted_distance = 3.0 | trusted_distance = 3e30
guess not finite | return mean - mean == 0 ? mean : 0; | return mean;
projection of dx | factor * r * r * sum_gd[c] | factor * r * sum_gd[c]
mean of d_dy | q[c] - scale[c] * mean_v) | q[c])
v h in e | of_g = p[c] - scale[c] * mean_vh | of_g = p[c]
last term of d_x | (mean_eh + scale[c] * s * per_value) | mean_eh
ddbias in evaluation | factors[C + c] = q[c]; | factors[C + c] = 0;

csrc/batch_norm_act/cpu_plan.h
parts of a sum | total[i + c] += more[i + c] | total[i + c] = more[i + c]

csrc/batch_norm_act/cpu.cpp
M/(M-1) | steps, M / (M - 1)) | steps, 1.0)
momentum | (1 - step) * value[c] + step | step * value[c] + (1 - step)
momentum None | 1.0 / static_cast<double>(*count) | 1.0 / static_cast<double>(*count + 1)
splits order | step = steps[split]; | step = steps[plan.splits - 1 - split];

csrc/batch_norm_act/cpu_backward.cpp
rstd in dweight | total[C + c] * rstd[c] | total[C + c]
splits in dbias | both[C + c] += total[c] | both[C + c] = total[c]
splits in d_weight | sum += d_weight_of_split | sum = d_weight_of_split
dx in evaluation | = training ? plan.kernels->backward_map : | = !training ? plan.kernels->backward_map :

csrc/loss.h
log clamp | Math::at_least(Math::log_of(x), -100.0) | Math::at_least(Math::log_of(x), -99.0)
pos_weight | ((p - 1.0f) * t + 1.0f) | (p + 0.0f * t)
pos_weight in dx | (p * t + (1.0f - t)) * s | s
smallest denominator | 1e-12f) | 1e-12)
sigmoid below 0 | x < 0.0f ? exp_of_minus_abs * larger : larger | larger
squared | 2.0f * (x - t) | (x - t)
hinge corner | 1.0f - t * x <= 0.0f ? V{} : -t | 1.0f - t * x < 0.0f ? V{} : -t
score | return sigmoid_given(x, Math::exp_of_nonpositive(Math::minus_abs(x))); | return x;

csrc/simd_math.h
coefficient of exp | 0.1666657703f | 0.1666f
coefficient of log1p | 0.2685149802f | 0.26f
log of a subnormal | FloatVec{} - 23.0f | FloatVec{} - 22.0f
rounding in log(1 - x) | return log_of(u) + (u == 0.0f ? FloatVec{} : lost / u); | return log_of(u);

csrc/loss_kernels_impl.h
missing tail | keep_first<T>(o.loss(), count) | keep_first<T>(o.loss(), count - 1)
missing tail of the score | keep_first<T>(score_of<K, VectorMath>(o.x), count) | V{}
weight | return plain ? y : y * w; | return y;
weight in dx | plain ? dx : dx * o.w | dx
runs in float | constexpr int64_t loss_run = 32; | constexpr int64_t loss_run = 1 << 20;
target outside [0, 1] | (any_target ? target_outside : 0) | 0

csrc/loss_plan.h
parts of the score | total[1] += part.sums[1] | total[1] = part.sums[1]

csrc/binary_cross_entropy/cpu.cpp
label | call.label = label; | call.label = label > 0.5;
factor 1/n | (reduction == "mean" ? static_cast<double>(n) : 1.0) | static_cast<double>(n)

csrc/gan_loss/cpu.cpp
factor 1/n | incoming / static_cast<double>(scores.count) | incoming / static_cast<double>(real.numel())
splits order | {&real, n, n, fake_label} | {&real, 0, n, fake_label}
label | {&fake, 0, fake.numel(), fake_label} | {&fake, 0, fake.numel(), 1 - real_label}
score | scalar(of_real[1], type) | scalar(of_fake[1], type)
"""  # noqa: E501


class Mutation(NamedTuple):
    """One change of one file."""

    file: str
    name: str
    old: str
    new: str

    @property
    def backend(self) -> str:
        return "native" if self.file.startswith("csrc/") else "eager"


def mutations() -> list[Mutation]:
    """Read the table and hold it to the files."""
    found = []
    for block in TABLE.strip().split("\n\n"):
        file, *rows = block.splitlines()
        for row in rows:
            mutation = Mutation(file, *row.split(" | "))
            count = (ROOT / file).read_text().count(mutation.old)
            if count != 1:
                sys.exit(
                    f"{file}: {mutation.name}: {mutation.old!r} occurs {count} times, not once"
                )
            found.append(mutation)
    return found


class Extension:
    """The native extension of a copy of the repository, compiled object by object."""

    def __init__(self, copy: Path) -> None:
        os.environ["CUDA_HOME"] = ""  # else torch announces what it takes for a toolkit
        from torch.utils import cpp_extension

        self.library, self.objects = copy / "ganfast" / "_native.so", copy / "build" / "mutation"
        self.objects.mkdir(parents=True)
        self.compiler = os.environ.get("CXX", "c++")
        self.flags = ["-std=c++20", "-O1", "-fPIC", "-ffp-contract=fast", "-fno-math-errno"]
        self.flags += ["-fno-trapping-math", "-fvisibility=hidden", "-w"]
        self.flags += ["-fopenmp"] if sys.platform == "linux" else []
        includes = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
        self.flags += [f"-isystem{path}" for path in includes]
        self.link_flags = [f"-L{path}" for path in cpp_extension.library_paths()]
        self.link_flags += ["-lc10", "-ltorch", "-ltorch_cpu"]
        best = torch.backends.cpu.get_cpu_capability()
        self.capability = {"AVX512": "avx512", "AVX2": "avx2"}.get(best, "baseline")

        # Kernels of the other instruction sets are never called: there, only their names.
        others = {"baseline", "avx2", "avx512", "avx512_bf16"} - {self.capability}
        for name in others:
            (copy / "csrc" / f"cpu_{name}.cpp").write_text(
                '#include <cstdlib>\n#include "instruction_set.h"\n'
                f"namespace ganfast::{name} {{\n"
                "const Kernels& kernels(const Selection&) { std::abort(); }\n"
                "const LossKernels& kernels(const LossSelection&) { std::abort(); }\n}\n"
            )
        self.sources = sorted((copy / "csrc").rglob("*.cpp"))
        for i in range(len(self.sources)):
            self._compile(i, "o")
        self.link()

    def link(self, changed: Path | None = None) -> None:
        """Link the objects, compiling again beside them what a changed file is part of."""
        ends = []
        for i in range(len(self.sources)):
            parts = (self.objects / f"{i}.o.d").read_text().replace("\\\n", " ").split()[1:]
            again = changed is not None and changed in {Path(part).resolve() for part in parts}
            if again:
                self._compile(i, "mutated.o")
            ends.append("mutated.o" if again else "o")
        objects = [self.objects / f"{i}.{end}" for i, end in enumerate(ends)]
        if changed is not None and set(ends) == {"o"}:
            sys.exit(f"no object of the extension depends on {changed.name}")
        self.library.unlink(missing_ok=True)
        command: list[str | Path] = [self.compiler, "-shared", *objects]
        _call([*command, *self.link_flags, "-o", self.library])

    def _compile(self, i: int, end: str) -> None:
        out = self.objects / f"{i}.{end}"
        command = [self.compiler, *self.flags, "-c", self.sources[i], "-o", out]
        _call([*command, "-MD", "-MF", f"{out}.d"])


def _call(command: list[str | Path]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stderr}")


def copy_repository(copy: Path) -> None:
    """Copy what git tracks or would add, as it is in the working tree."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard"]
    for name in subprocess.check_output(command, text=True).rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)


def red_test(copy: Path, backend: str, ops: tuple[str, ...], capability: str) -> str:
    """Run the tests of some ops until one fails; return what caught the mutation, or ""."""
    settings = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    if backend == "native":
        settings |= {"GANFAST_REQUIRE": "native", "GANFAST_CPU_CAPABILITY": capability}
    other = "eager" if backend == "native" else "native"
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-k", f"not {other}"]
    command += [f"tests/test_{op}.py" for op in ops]
    environment = os.environ | settings | {"GANFAST_NATIVE": str(int(backend == "native"))}
    try:
        result = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT
        )
    except subprocess.TimeoutExpired:
        return "the time limit"
    failed = re.search(r"^FAILED (\S+?::\w+)", result.stdout, re.MULTILINE)
    if failed:
        return failed[1]
    if result.returncode < 0:
        return f"a crash of the tests, signal {-result.returncode}"
    if result.returncode:
        sys.exit(f"the tests did not run:\n{result.stdout}{result.stderr}")
    return ""


def run(chosen: list[Mutation], copy: Path) -> list[Mutation]:
    """Try each mutation in the copy; return those that no test notices."""
    copy_repository(copy)
    survivors, extension, capability = [], None, ""
    if any(mutation.backend == "native" for mutation in chosen):
        print("compiling the extension", flush=True)
        extension = Extension(copy)
        capability = extension.capability
    for backend, ops in sorted({(m.backend, TESTS_OF[m.file]) for m in chosen}):
        red = red_test(copy, backend, ops, capability)
        if red:
            sys.exit(f"{backend}: {red} fails without any mutation")
    for mutation in chosen:
        file = copy / mutation.file
        text = file.read_text()
        file.write_text(text.replace(mutation.old, mutation.new))
        if extension is not None and mutation.backend == "native":
            extension.link(file)
        red = red_test(copy, mutation.backend, TESTS_OF[mutation.file], capability)
        file.write_text(text)
        survivors += [] if red else [mutation]
        verdict = f"caught by {red}" if red else "SURVIVED"
        print(
            f"{mutation.name:34}  {mutation.backend:6}  {mutation.file:41}  {verdict}", flush=True
        )
    return survivors


def main() -> int:
    """Run the mutations that are asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="mutations of these names")
    parser.add_argument("--backend", choices=["eager", "native"], help="default: both")
    parser.add_argument("--list", action="store_true", help="say what there is and stop")
    args = parser.parse_args()
    chosen = [m for m in mutations() if args.backend in (None, m.backend)]
    if args.only:
        unknown = set(args.only) - {mutation.name for mutation in chosen}
        if unknown:
            parser.error(f"no mutation is called {', '.join(map(repr, sorted(unknown)))}")
        chosen = [mutation for mutation in chosen if mutation.name in args.only]
    if args.list:
        for m in chosen:
            print(f"{m.name:34}  {m.backend:6}  {m.file}\n    - {m.old}\n    + {m.new}")
        return 0
    if args.backend is None and shutil.which(os.environ.get("CXX", "c++")) is None:
        print("native: left out, there is no C++ compiler")
        chosen = [mutation for mutation in chosen if mutation.backend == "eager"]
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ganfast-mutation-") as folder:
        survivors = run(chosen, Path(folder).resolve())
    seconds = time.monotonic() - start
    print(f"{len(chosen)} mutations, {len(survivors)} survived, {seconds:.0f} seconds")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
