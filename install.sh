#!/bin/sh
# Makes $VENV and installs the project with all it needs. Called by the Makefile; safe to run again.
# RESOLUTION=lowest-direct takes the oldest releases that setup.py allows (see tests/versions.sh).
set -eu
start=$(date +%s)
say() { echo "setup: $*"; }

# fast-slic has no wheels; without a compiler the project falls back to scikit-image.
build_fast_slic() {
    uv pip install --quiet --python "$VENV/bin/python" --no-build-isolation fast-slic==0.4.0 ||
        say "fast-slic did not build (is there a C++ compiler?); scikit-image will compute superpixels, about 15 times slower"
}

# Built now rather than by the first training run, where both ranks would wait for it.
build_collectives() {
    "$VENV/bin/python" -c "
from deepspeed.accelerator import get_accelerator
builder = get_accelerator().create_op_builder('ShareMemCommBuilder')
if builder is not None and builder.is_compatible():
    builder.load(verbose=False)
" >/dev/null 2>&1 || say "DeepSpeed's shared-memory collectives did not build; ranks on this machine will use gloo alone"
}

# A module is compiled to bytecode at its first import: done here rather than by the first run, in each of its processes.
compile_bytecode() {
    "$VENV/bin/python" -W ignore -c "import mlflow, segclip.eval.run, segclip.trainer.loop, segclip.trainer.quickstart" >/dev/null
}

if [ ! -x "$VENV/bin/python" ]; then
    say "making $VENV"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { say "needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
    "$PYTHON" -m venv "$VENV" || {
        # Half an environment would pass for a whole one next time.
        rm -rf "$VENV"
        say "$PYTHON could not make an environment; does it have its venv module (on Debian: apt install python3-venv)?"
        exit 1
    }
fi
PATH="$PWD/$VENV/bin:$PATH"
export TORCH_EXTENSIONS_DIR="$PWD/$VENV/torch_extensions"

say "installing torch, DeepSpeed, MLflow and the rest (about 6 GB, two or three minutes)"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check uv
uv pip install --quiet --python "$VENV/bin/python" --resolution "${RESOLUTION:-highest}" \
    "cython>=3.0.11,<4" "setuptools>=77" "wheel>=0.45" "numpy>=2"
uv pip install --quiet --python "$VENV/bin/python" --no-build-isolation-package segclip \
    --resolution "${RESOLUTION:-highest}" -e ".[dev]"

say "compiling fast-slic and DeepSpeed's CPU collectives"
build_fast_slic &
build_collectives
compile_bytecode
wait

seconds=$(($(date +%s) - start))
echo "$seconds" >"$VENV/install_seconds"
touch "$VENV/.installed"
say "done in $seconds s"
