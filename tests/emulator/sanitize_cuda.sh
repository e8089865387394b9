#!/bin/sh
# Run a small suite of the CUDA kernels under compute-sanitizer: memory, races, uninitialised reads.
# Needs a GPU, the CUDA toolkit's compute-sanitizer and the built extension.
#
#     PYTHON=.venv/bin/python tests/emulator/sanitize_cuda.sh [memcheck|racecheck|initcheck|synccheck]...
set -eu
PYTHON=${PYTHON:-python3}
cd "$(dirname "$0")/../.."

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "sanitize_cuda.sh: torch sees no GPU: nothing was checked" >&2
    exit 77
fi
if ! command -v compute-sanitizer > /dev/null; then
    echo "sanitize_cuda.sh: there is no compute-sanitizer on the PATH: nothing was checked" >&2
    exit 77
fi
# Pooled memory would hide accesses past a tensor's end.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
for tool in ${*:-memcheck racecheck initcheck}; do
    # torch's kernels are left alone, save where they write what ours read.
    only="--kernel-regex kns=ganfast"
    test "$tool" != initcheck || only=
    echo "compute-sanitizer --tool $tool $only"
    compute-sanitizer --tool "$tool" $only --error-exitcode 1 --target-processes all \
        "$PYTHON" -m pytest -q -x --no-header -W default \
        tests/ops/test_batch_norm_act.py tests/ops/test_gan_loss.py \
        tests/ops/test_binary_cross_entropy.py \
        -k "native-cuda and (every_mode or splits or any_layout or large or labels or reduction)"
done
