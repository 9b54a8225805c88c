#!/usr/bin/env bash
# Make .venv and install gradroute in it, editable, with the releases of constraints.txt.
# Called by `make setup`; reads PYTHON, EXTRAS and TORCH_BACKEND.
set -euf -o pipefail
cd "$(dirname "$0")/.."
venv=.venv

if uv="$(command -v uv)"; then
    if [ ! -x "$venv/bin/python" ]; then
        "$uv" venv --quiet --allow-existing ${PYTHON:+--python "$PYTHON"} "$venv"
    fi
else
    if [ ! -x "$venv/bin/python" ]; then
        python="${PYTHON:-python3}"
        if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "error: gradroute needs Python 3.11 or newer as $python; name one, as in" \
                "'make setup PYTHON=python3.12', or install uv, which brings its own." >&2
            exit 1
        fi
        # A venv without pip (Debian without python3-venv) must not look like a finished one.
        "$python" -m venv "$venv" || { rm -rf "$venv"; exit 1; }
    fi
    uv="$venv/bin/uv"
    if [ ! -x "$uv" ]; then
        "$venv/bin/python" -m pip --version > /dev/null 2>&1 || "$venv/bin/python" -m ensurepip
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.8'
    fi
fi

# uv does not read pip's settings: pass on the folders of wheels that pip would look into.
if [ -z "${UV_FIND_LINKS:-}" ]; then
    links=""
    for folder in ${PIP_FIND_LINKS:-$("${PYTHON:-python3}" -m pip config get global.find-links 2> /dev/null || true)}; do
        folder="${folder#file://}"
        if [ -d "$folder" ]; then links="${links:+$links,}$folder"; fi
    done
    if [ -n "$links" ]; then export UV_FIND_LINKS="$links"; fi
fi

"$uv" pip install --python "$venv/bin/python" ${TORCH_BACKEND:+--torch-backend="$TORCH_BACKEND"} \
    --constraints constraints.txt --editable ".[dev${EXTRAS:+,$EXTRAS}]"
