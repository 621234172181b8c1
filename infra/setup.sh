# shellcheck shell=bash
# Sourced by infra/run, infra/up and infra/test: finds a Python, makes .venv and installs from a hash-pinned lock.
# A stamp in .venv says what is installed, so that a second start takes no time; a start that was interrupted is
# redone from nothing; of two starts at once the second waits. Packages come from wherever pip is configured to look.
# For infra/up and infra/test also installs the servers that they start, from wherever apt is configured to look.

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
  remove_unlocked
  printf '%s' "$level $print" >"$stamp"
  rm -f -- "$unfinished"
  exec 9<&-
  say "Installed in $((SECONDS - began)) s."
}

# remove_unlocked: takes out of .venv what an earlier lock named and this one does not.
remove_unlocked() {
  local unlocked
  mapfile -t unlocked < <(
    "$venv/bin/python" - "$root/requirements-dev.lock" <<'PYTHON'
import importlib.metadata, re, sys
def normal(name): return re.sub(r"[-_.]+", "-", name).lower()
kept = {normal(line.partition("==")[0]) for line in open(sys.argv[1], encoding="utf-8") if "==" in line}
kept |= {"meterhouse", "pip", "setuptools", "wheel"}
print(*{normal(found.metadata["Name"]) for found in importlib.metadata.distributions()} - kept, sep="\n", end="")
PYTHON
  )
  ((${#unlocked[@]} == 0)) || logged "$venv/bin/python" -m pip uninstall --quiet --yes "${unlocked[@]}"
}

# set_up run|dev: makes sure that .venv holds the runtime packages, or the development ones too.
set_up() {
  local print
  print=$(fingerprint)
  is_installed "$1" "$print" || install "$1" "$print"
}

# missing_packages PACKAGE...: prints those of these Debian packages whose programs cannot be found.
missing_packages() {
  local package search
  search=$(printf '%s:' /usr/lib/postgresql/*/bin)$PATH:/usr/sbin
  for package in "$@"; do
    case $package in
      redis-server | pgbouncer | nginx | openssl | curl | chromium | prometheus | g++) PATH=$search type -P "$package" >/dev/null && continue ;;
      nodejs) type -P node >/dev/null && continue ;;
      npm) type -P npm >/dev/null && continue ;;
      postgresql) PATH=$search type -P initdb >/dev/null && continue ;;
      faketime) [[ -e /usr/lib/$(uname -m)-linux-gnu/faketime/libfaketime.so.1 ]] && continue ;;
    esac
    printf '%s\n' "$package"
  done
}

# install_packages PACKAGE...: as root; none of their services is started, now or when the machine starts again.
install_packages() {
  set -euo pipefail
  local policy=/usr/sbin/policy-rc.d package
  if [[ ! -e $policy ]]; then
    trap 'rm -f -- /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get -o DPkg::Lock::Timeout=300 update
  apt-get -o DPkg::Lock::Timeout=300 install --yes --no-install-recommends -- "$@"
  if [[ -d /run/systemd/system ]]; then
    for package in "$@"; do
      systemctl disable "$package" || true
    done
  fi
}

# set_up_servers PACKAGE...: makes sure that the servers of these Debian packages are installed.
set_up_servers() {
  local missing as_root=() began=$SECONDS
  mapfile -t missing < <(missing_packages "$@")
  ((${#missing[@]})) || return 0
  if ((EUID)); then
    as_root=(sudo -n)
  fi
  if ! type -P apt-get >/dev/null || ! ${as_root[@]+"${as_root[@]}"} true 2>/dev/null; then
    fail "this needs ${missing[*]}; as an administrator (Debian, Ubuntu): sudo apt-get install ${missing[*]}"
  fi
  say "Installing ${missing[*]} from Debian's packages (once) ..."
  # shellcheck disable=SC2016
  logged ${as_root[@]+"${as_root[@]}"} bash -c "$(declare -f install_packages)"'; install_packages "$@"' - "${missing[@]}"
  mapfile -t missing < <(missing_packages "$@")
  ((${#missing[@]} == 0)) || fail "${missing[*]} was installed, and what is needed of it is not there"
  say "Installed in $((SECONDS - began)) s."
}
