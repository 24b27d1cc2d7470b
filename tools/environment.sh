# Sourced by the scripts beside it: a virtual environment with the project in it.
#
# VENV=DIR names the environment (.venv by default), PYTHON=… the interpreter.

# Prints a Python of 3.11 or newer.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: expected Python 3.11 or newer, found none; PYTHON=… names one" >&2
  return 1
}

# make_environment EXTRAS: installs the project with these extras into $VENV, unless
# that was done before and nothing about its requirements has changed.
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
      "apt install python3-venv first" >&2
    return 1
  fi
  echo "installing into $VENV (TensorFlow and others, some 700 MB the first time)"
  if ! "$VENV/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
    -e ".[$extras]" 2>&1 | tee "$log" | show_last_line; then
    local package
    package="$(sed -n 's/.*No matching distribution found for \([^ ]*\).*/\1/p' "$log" | head -n 1)"
    # A network that fails in the middle: what was being fetched.
    package="${package:-$(sed -n 's/^ *Collecting \([^ ]*\).*/\1/p' "$log" | tail -n 1)}"
    echo "error: could not install ${package:-the project}: is there a network, and a release" \
      "of it for $("$VENV/bin/python" --version)? pip's own words are in $log;" \
      "re-run the command to resume" >&2
    return 1
  fi
  echo "$wanted" >"$stamp"
}

# Shows on one line, rewritten, what pip is doing.
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
