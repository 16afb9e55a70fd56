#!/usr/bin/env bash
# Try the packages in an environment of other versions, made in the folder named:
#     tests/old_versions.sh lowest|gpu FOLDER
# "lowest" are the versions that pyproject.toml promises; "gpu" those of a machine with a GPU and no
# datasets. Torch's wheels of these versions bring CUDA: several gigabytes. BASE_PYTHON is a Python
# 3.10 for the lowest versions and a 3.12 for the others.
set -euo pipefail
cd "$(dirname "$0")/.."
which=$1 folder=$2
tools="pytest>=8 pytest-timeout hypothesis scipy pyarrow"
case $which in
lowest)
    base=${BASE_PYTHON:-python3.10}
    packages="torch==2.8.0 triton==3.4.0 numba==0.61.2 numpy==1.26.0 transformers==5.0.0"
    packages+=" accelerate==1.2.1 datasets==3.0.0 safetensors==0.4.3 rich==13.8.0 pytest-xdist"
    numpy=1.26.0 ;;
gpu)
    base=${BASE_PYTHON:-python3.12}
    packages="torch==2.11.0 triton==3.6.0 numba numpy==2.5.2 transformers==5.17.0"
    packages+=" accelerate==1.15.0 peft pytest-xdist"
    numpy='2.3.*' ;; # Triton 3.6 interpreted makes an int of an array, which NumPy 2.5 refuses
*) echo "old_versions.sh: expected lowest or gpu, got $which" >&2; exit 2 ;;
esac
test -x "$folder/bin/python" || "$base" -m venv "$folder"
python=$folder/bin/python
# shellcheck disable=SC2086
"$python" -m pip install --quiet $packages $tools
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
failed=0
try() { "$@" || { failed=1; echo "FAILED: $*" >&2; }; }
try "$python" -c "import maskkernels, maskft; from maskft import attach, fuse_loss"
try "$python" -m pytest -q tests/maskkernels
try "$python" -m tests.compile_kernels
"$python" -m pip install --quiet "numpy==$numpy"
try "$python" -m pytest -q tests/interpreted
exit $failed
