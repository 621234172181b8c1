# shellcheck shell=bash
# Sourced by infra/test for --real-model, after infra/setup.sh: makes .venv-real-model, where the tests' real model
# servers live, apart from .venv. Made once and kept until what is pinned changes: 1.4 GB, and compiling llama.cpp
# takes minutes (19 in all on one busy core).
#
# The locks pin with hashes; torch is pinned by its version alone, because one version is other files for other
# processors and accelerators, and which of them there is depends on where pip is configured to look. 2.13.0 is the last
# that was seen as a build for CPUs alone; one for CUDA works too, and brings gigabytes. llama-cpp-python is published
# as source only, so it has a lock of its own: it is built with the build tools of the other lock, and not in an isolated
# folder, for which pip would fetch tools that nothing pins.
real_torch=torch==2.13.0
# For any processor of this kind and not only this one, since the result is kept; without what reads pictures.
real_build="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF"
real_venv=$root/.venv-real-model
real_locks=("$root/infra/real-model/wheels.lock" "$root/infra/real-model/source.lock")

# is_real_model_installed FINGERPRINT: whether .venv-real-model was made completely, of that.
is_real_model_installed() {
  [[ -x $real_venv/bin/python && -f $real_venv/.meterhouse-installed ]] || return 1
  [[ $(<"$real_venv/.meterhouse-installed") == "$1" ]]
}

# set_up_real_model: makes sure that .venv-real-model holds the servers.
set_up_real_model() {
  local print python began=$SECONDS
  print=$({ cat -- "${real_locks[@]}" && printf '%s' "$real_torch" "$real_build" "$root"; } | cksum)
  is_real_model_installed "$print" && return
  set_up_servers g++
  python=$(find_python)
  wait_for_turn "$python"
  if is_real_model_installed "$print"; then
    exec 9<&-
    return
  fi
  say "Making .venv-real-model: PyTorch, transformers, and llama.cpp, which is compiled (once; many minutes) ..."
  rm -rf -- "$real_venv"
  logged "$python" -m venv "$real_venv"
  local pip=("$real_venv/bin/python" -m pip --disable-pip-version-check --no-input install --quiet --progress-bar off)
  logged "${pip[@]}" --require-hashes --no-deps --only-binary :all: -r "${real_locks[0]}"
  logged "${pip[@]}" --only-binary :all: "$real_torch"
  PATH=$real_venv/bin:$PATH CMAKE_ARGS=$real_build \
    logged "${pip[@]}" --require-hashes --no-deps --no-build-isolation --no-binary :all: -r "${real_locks[1]}"
  printf '%s' "$print" >"$real_venv/.meterhouse-installed"
  exec 9<&-
  say "Installed in $((SECONDS - began)) s."
}
