#!/usr/bin/env bash
# Build the sdist and, from it, the wheel; install the wheel into an empty environment with its
# base dependencies only, and use it there: tests/package.sh [PYTHON]
# PYTHON is one with the package "build"; the base environment is made by BASE_PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${1:-.venv/bin/python}")
constraints=$PWD/constraints.txt
smoke=$PWD/tests/smoke.py
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
git ls-files -z | xargs -0 cp --parents -t "$folder"  # what is committed, not what lies about
cd "$folder"
"$python" -m build --outdir dist . >build.log 2>&1 || { cat build.log >&2; exit 1; }
ls -l dist
"${BASE_PYTHON:-$python}" -m venv empty
empty/bin/python -m pip install --quiet --disable-pip-version-check -c "$constraints" dist/*.whl
mkdir elsewhere && cd elsewhere # so that the installed packages are imported, not the sources
cp "$smoke" smoke.py
HF_HUB_OFFLINE=1 ../empty/bin/python smoke.py
if ../empty/bin/maskft train --help >said 2>&1; then echo "maskft train ran without its extra" >&2; exit 1; fi
grep -q "pip install 'maskkernels\[train\]'" said
echo "the wheel installs and works with its base dependencies only"
