# Functions for the scripts in this directory: a virtual environment with the project installed.
#
# VENV=DIR is the virtual environment (.venv by default), PYTHON=… the interpreter.

# Prints the name of a Python 3.11 or newer.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: found no Python 3.11 or newer; install one, or set PYTHON to its path" >&2
  return 1
}

# make_environment EXTRAS: installs the project with these extras into $VENV, unless it is
# installed there and its requirements have not changed.
make_environment() {
  local extras="$1" python log stamp wanted
  VENV="${VENV:-.venv}"
  stamp="$VENV/.installed-$extras" log="$VENV/install.log"
  wanted="$(cat setup.py requirements.txt)"
  if [ -f "$stamp" ] && [ "$wanted" = "$(cat "$stamp")" ]; then
    return
  fi
  python="$(find_python)"
  if ! [ -x "$VENV/bin/python" ] && ! "$python" -m venv "$VENV"; then
    echo "error: $python cannot make the virtual environment $VENV; on Debian and Ubuntu," \
      "run apt install python3-venv first" >&2
    return 1
  fi
  echo "installing into $VENV (TensorFlow and other packages: a download of about 700 MB, 2.6 GB on disk)"
  if ! "$VENV/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
    -e ".[$extras]" 2>&1 | tee "$log" | show_last_line; then
    local package
    package="$(sed -n 's/.*No matching distribution found for \([^ ]*\).*/\1/p' "$log" | head -n 1)"
    # If the network fails during a download, this is the package that pip was fetching.
    package="${package:-$(sed -n 's/^ *Collecting \([^ ]*\).*/\1/p' "$log" | tail -n 1)}"
    echo "error: could not install ${package:-the project}: it needs network access and a release" \
      "for $("$VENV/bin/python" --version); see pip's output in $log," \
      "and re-run the command to resume" >&2
    return 1
  fi
  echo "$wanted" >"$stamp"
}

# Shows pip's progress on a single line.
show_last_line() {
  local line
  while IFS= read -r line; do
    case "$line" in
      Collecting* | *Downloading* | Installing* | *Preparing*)
        if [ -t 1 ]; then printf '\r\033[K  %.70s' "${line#"${line%%[! ]*}"}"; fi
        ;;
    esac
  done
  if [ -t 1 ]; then printf '\r\033[K'; fi
}
