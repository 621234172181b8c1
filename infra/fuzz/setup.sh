# shellcheck shell=bash
# Sourced by infra/test for --fuzz, after infra/setup.sh: makes .venv-fuzz, where atheris lives, apart from .venv.
# Made once and kept until its lock changes.
fuzz_venv=$root/.venv-fuzz
fuzz_lock=$root/infra/fuzz/wheels.lock

# set_up_fuzz: makes sure that .venv-fuzz holds the fuzzer.
set_up_fuzz() {
  local print python began=$SECONDS
  print=$({ cat -- "$fuzz_lock" && printf '%s' "$root"; } | cksum)
  [[ -x $fuzz_venv/bin/python && -f $fuzz_venv/.meterhouse-installed ]] &&
    [[ $(<"$fuzz_venv/.meterhouse-installed") == "$print" ]] && return
  python=$(find_python)
  wait_for_turn "$python"
  say "Making .venv-fuzz: atheris (once) ..."
  rm -rf -- "$fuzz_venv"
  logged "$python" -m venv "$fuzz_venv"
  logged "$fuzz_venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet --progress-bar off \
    --require-hashes --no-deps --only-binary :all: -r "$fuzz_lock"
  printf '%s' "$print" >"$fuzz_venv/.meterhouse-installed"
  exec 9<&-
  say "Installed in $((SECONDS - began)) s."
}

# fuzz SECONDS: runs each target for so long; what breaks one is kept in the folder that it names, and ends with 1.
fuzz() {
  local target found
  found=$(mktemp -d)
  for target in sse tool_text; do
    say "== fuzzing ${target} for $1 s; what breaks it is kept in $found"
    PYTHONPATH=$root/platform "$fuzz_venv/bin/python" "$root/infra/fuzz/${target}_target.py" \
      -max_total_time="$1" -max_len=600 -len_control=0 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
      -verbosity=0 -artifact_prefix="$found/$target-" </dev/null || fail "the target $target broke; see $found"
  done
  rmdir -- "$found"
}
