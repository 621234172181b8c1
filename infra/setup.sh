# shellcheck shell=bash
# Sourced by infra/run and infra/test: finds a Python, makes .venv and installs from a hash-pinned lock.
# A stamp in .venv says what is installed, so that a second start takes no time; a start that was interrupted is
# redone from nothing; of two starts at once the second waits. Packages come from wherever pip is configured to look.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
stamp=$venv/.meterhouse-installed
unfinished=$venv/.meterhouse-unfinished
unset PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX

say() { printf '%s\n' "$*" >&2; }

fail() {
  say "error: $*"
  exit 1
}

# find_python: prints the command of a Python 3.11 or later that can make virtual environments.
find_python() {
  local candidate bare=''
  for candidate in python3.13 python3.12 python3.11 python3; do
    # Tried, not only looked up: a version manager's shim may be on the path without its version.
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null </dev/null || continue
    if "$candidate" -c 'import ensurepip, venv' 2>/dev/null </dev/null; then
      printf '%s' "$candidate"
      return
    fi
    bare=${bare:-$("$candidate" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')}
  done
  if [[ -n $bare ]]; then
    fail "$bare cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install $bare-venv)"
  fi
  fail "Python 3.11 or later is needed and was not found on the PATH (Debian, Ubuntu: apt install python3 python3-venv)"
}

# fingerprint: prints what an installation depends on, the place of the checkout included (a venv cannot be moved).
fingerprint() {
  { cat -- "$root/pyproject.toml" "$root/requirements.lock" "$root/requirements-dev.lock" && printf '%s' "$root"; } | cksum
}

# is_installed LEVEL FINGERPRINT: whether .venv holds at least that (dev holds run).
is_installed() {
  local found=''
  [[ -x $venv/bin/python && -f $stamp && ! -e $unfinished ]] || return 1
  found=$(<"$stamp")
  [[ $found == "dev $2" || $found == "$1 $2" ]]
}

# is_usable: whether .venv was made completely, here, by a Python that still exists and is not too old.
is_usable() {
  [[ -x $venv/bin/python && ! -e $unfinished ]] || return 1
  "$venv/bin/python" - "$venv" 2>/dev/null <<'PYTHON'
import os, sys
import pip
made_here = os.path.realpath(sys.prefix) == os.path.realpath(sys.argv[1])
scripts = open(os.path.join(sys.argv[1], "bin", "activate"), encoding="utf-8").read()
sys.exit(not (made_here and sys.argv[1] in scripts and sys.version_info >= (3, 11)))
PYTHON
}

# logged COMMAND...: runs it silently; shows all that it said if it fails.
logged() {
  local log
  log=$(mktemp)
  if ! "$@" >"$log" 2>&1 </dev/null; then
    cat -- "$log" >&2
    rm -f -- "$log"
    fail "this failed: $*"
  fi
  rm -f -- "$log"
}

# wait_for_turn PYTHON: holds a lock on pyproject.toml through descriptor 9 until it is closed.
wait_for_turn() {
  exec 9<"$root/pyproject.toml"
  "$1" - <<'PYTHON'
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("Waiting for another start that is installing into .venv ...", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
PYTHON
}

# install LEVEL FINGERPRINT: makes .venv if there is none that can be used, and installs the lock into it.
install() {
  local level=$1 print=$2 python lock=$root/requirements.lock began=$SECONDS
  [[ $level == dev ]] && lock=$root/requirements-dev.lock
  python=$(find_python)
  wait_for_turn "$python"
  if is_installed "$level" "$print"; then
    exec 9<&-
    return
  fi
  if ! is_usable; then
    say "Making .venv with $("$python" --version) ..."
    rm -rf -- "$venv"
    mkdir -- "$venv"
    : >"$unfinished"
    logged "$python" -m venv "$venv"
  fi
  : >"$unfinished"
  rm -f -- "$stamp"
  say "Installing $(grep -c '==' "$lock") packages from ${lock##*/} (once; about a minute) ..."
  local pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet --progress-bar off)
  logged "${pip[@]}" --require-hashes --only-binary :all: -r "$lock"
  logged "${pip[@]}" --no-deps --no-build-isolation -e "$root"
  printf '%s' "$level $print" >"$stamp"
  rm -f -- "$unfinished"
  exec 9<&-
  say "Installed in $((SECONDS - began)) s."
}

# set_up run|dev: makes sure that .venv holds the runtime packages, or the development ones too.
set_up() {
  local print
  print=$(fingerprint)
  is_installed "$1" "$print" || install "$1" "$print"
}
