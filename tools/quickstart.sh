#!/usr/bin/env bash
# The whole pipeline on real text, in about two minutes on two CPU cores after installing.
#
#   bash tools/quickstart.sh                          Chinese text that comes with a package
#   bash tools/quickstart.sh --train_teacher          the same with a teacher trained first
#   TEACHER=dir CORPUS=dir bash tools/quickstart.sh   your own model, text, or both
#   CORPUS=a.csv bash tools/quickstart.sh --text_fields=body   rows: the fields with text
#
# Makes a virtual environment, caches the targets of a small teacher that comes with the
# project, distills a student of half its layers, trains the same student without the
# teacher, and ends with a table and a page of charts. Without TEACHER a teacher for your own
# text is trained first. If it is interrupted, run it again to resume.
#
# WORK=DIR names where everything goes (quickstart by default), VENV=DIR the
# environment (.venv), PYTHON=… the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh
make_environment quickstart
exec "$VENV/bin/python" -m tools.quickstart --work="${WORK:-quickstart}" \
  --install_seconds="$SECONDS" ${TEACHER:+--teacher="$TEACHER"} ${CORPUS:+--corpus="$CORPUS"} "$@"
