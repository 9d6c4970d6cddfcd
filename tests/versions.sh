#!/bin/sh
# The fast tests and the documentation with the oldest releases of the dependencies that setup.py allows, and with the
# newest: make test-versions. Two environments in .versions/ (6 GB each), which it keeps.
#   VERSIONS=lowest-direct   one of the two: lowest-direct, highest
#   TESTS="tests/models"     other tests than all
#   PYTHON=python3.13        another interpreter
set -eu
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1
failed=""
for resolution in ${VERSIONS:-lowest-direct highest}; do
    folder=".versions/$resolution"
    PYTHON="${PYTHON:-python3}" VENV="$folder" RESOLUTION="$resolution" sh install.sh
    export TORCH_EXTENSIONS_DIR="$PWD/$folder/torch_extensions"
    echo "== $resolution: $("$folder/bin/python" -c "
import importlib.metadata as m, platform
print('Python', platform.python_version(), *(f'{n} {m.version(n)}' for n in ('torch', 'deepspeed', 'mlflow', 'numpy', 'pydantic')))")"
    # Not all of them may pass, and the other versions are to be seen all the same.
    # shellcheck disable=SC2086
    "$folder/bin/python" -m pytest -m "not slow and not exhaustive" -n "${JOBS:-2}" --dist loadfile --no-loadscope-reorder ${TESTS:-tests} ||
        failed="$failed $resolution"
    "$folder/bin/python" -m mkdocs build --strict --site-dir "$folder/site" || failed="$failed $resolution(docs)"
done
[ -z "$failed" ] || { echo "error: failed with$failed" >&2; exit 1; }
