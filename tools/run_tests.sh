#!/usr/bin/env bash
# Makes a virtual environment, installs the project into it, lints it and runs its tests.
#
#   bash tools/run_tests.sh                 the suite
#   bash tools/run_tests.sh -m peers        comparisons that need torch and transformers
#
# VENV=DIR names the environment (.venv by default), PYTHON=… the interpreter.
# Everything after the script's name goes to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${VENV:-.venv}"
python="${PYTHON:-}"
if [ -z "$python" ]; then
  for candidate in python3.13 python3.12 python3.11 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python="$candidate"
      break
    fi
  done
fi
if [ -z "$python" ]; then
  echo "error: expected Python 3.11 or newer, found none; PYTHON=… names one" >&2
  exit 1
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[test]'
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
exec "$venv/bin/python" -m pytest "$@"
