#!/usr/bin/env bash
# Makes a virtual environment, installs the project into it, lints it and runs its tests.
#
#   bash tools/run_tests.sh                 the suite
#   bash tools/run_tests.sh -m long         its long tests
#   bash tools/run_tests.sh -m docs         the examples of the README files
#   bash tools/run_tests.sh -m peers        comparisons that need torch and transformers
#
# VENV=DIR names the environment (.venv by default), PYTHON=… the interpreter.
# Everything after the script's name goes to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh
make_environment test
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
"$VENV/bin/python" -m tools.dev.lint_words
# Two processes: each holds TensorFlow.
exec "$VENV/bin/python" -m pytest -n 2 --dist=worksteal "$@"
