# Sourced by the other scripts: makes .venv and installs the pinned set into it, once.
#   install_environment EXTRA...     extras of pyproject.toml, e.g. test
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

install_environment() {
    local extras="${*// /,}" python="${PYTHON:-python3}" wanted
    wanted="$(cat pyproject.toml launch/constraints.txt | sha256sum | cut -d' ' -f1) [$extras]"
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    if [ "$(cat .venv/installed-"${extras:-none}" 2>/dev/null)" != "$wanted" ]; then
        echo "installing into .venv (once)"
        # torch first and by its pin: a range would let pip choose a newer build of several gigabytes
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt torch==2.13.0
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -c launch/constraints.txt \
            -e ".${extras:+[$extras]}"
        echo "$wanted" > .venv/installed-"${extras:-none}"
    fi
}
