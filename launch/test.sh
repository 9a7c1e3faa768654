#!/usr/bin/env bash
# All tests and the linter.   bash launch/test.sh [pytest arguments, e.g. -m 'not slow']
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

install_environment test
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# A file's tests share models and runs, so a file stays with one worker.
HF_HUB_OFFLINE=1 .venv/bin/python -m pytest -n auto --dist loadfile "$@"
