# shellcheck shell=bash
# Sourced by infra/test, after infra/setup.sh: installs the clients that people have besides the SDK for Python into
# .venv-clients, each in a place of its own, since their dependencies are nobody else's.
#
# The locks of the Python clients pin all that they need with hashes. OpenAI's package for Node needs no other package,
# so its lock is one line: name, version, SHA-512 of the archive that npm gives; a lock file of npm's would say where
# packages come from, which is the installing machine's business.

clients=$root/.venv-clients
python_clients=(langchain llama-index pydantic-ai)

# set_up_python_client NAME: makes sure that .venv-clients/NAME holds what infra/clients/NAME.lock pins.
set_up_python_client() {
  local place=$clients/$1 lock=$root/infra/clients/$1.lock print python began=$SECONDS
  print=$({ cat -- "$lock" && printf '%s' "$root"; } | cksum)
  [[ -f $place/.meterhouse-installed && $(<"$place/.meterhouse-installed") == "$print" ]] && return
  python=$(find_python)
  say "Installing $1 into .venv-clients (once) ..."
  rm -rf -- "$place"
  mkdir -p -- "$clients"
  logged "$python" -m venv "$place"
  logged "$place/bin/python" -m pip --disable-pip-version-check --no-input install --quiet --progress-bar off \
    --require-hashes --no-deps --only-binary :all: -r "$lock"
  printf '%s' "$print" >"$place/.meterhouse-installed"
  say "Installed in $((SECONDS - began)) s."
}

# set_up_python_clients: all of them, one after the other; of two starts at once the second waits.
set_up_python_clients() {
  local name
  wait_for_turn "$(find_python)"
  for name in "${python_clients[@]}"; do
    set_up_python_client "$name"
  done
  exec 9<&-
}

# set_up_node_client: makes sure that .venv-clients/node holds OpenAI's package for Node, of which no script is run.
set_up_node_client() {
  local place=$clients/node name version wanted found archive
  read -r name version wanted <"$root/infra/clients/node.lock"
  set_up_servers nodejs npm
  [[ -f $place/.meterhouse-installed && $(<"$place/.meterhouse-installed") == "$wanted" ]] && return
  wait_for_turn "$(find_python)"
  rm -rf -- "$place"
  mkdir -p -- "$place/node_modules/$name"
  logged npm pack --silent --ignore-scripts --pack-destination "$place" "$name@$version"
  archive=$place/$name-$version.tgz
  found=$(openssl dgst -sha512 -binary "$archive" | base64 --wrap=0)
  [[ $found == "$wanted" ]] || fail "the archive of $name $version is not the one that was locked"
  tar --extract --gzip --file "$archive" --directory "$place/node_modules/$name" --strip-components=1
  rm -f -- "$archive"
  printf '%s' "$wanted" >"$place/.meterhouse-installed"
  exec 9<&-
}
