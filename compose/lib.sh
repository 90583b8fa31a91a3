# shellcheck shell=bash
# What compose/up, compose/down, compose/build and tests/run share: messages, timed steps, prerequisites.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
compose_dir=$root/compose

# Two names that the compose file and the scripts have to agree on.
export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-warden}
# docker-compose 1.29 gives up on a busy engine after 60 s, in the middle of things.
export COMPOSE_HTTP_TIMEOUT=${COMPOSE_HTTP_TIMEOUT:-300}
# shellcheck disable=SC2034 # used by those who source this
prefix=${WARDEN_PREFIX:-}

say() { printf '%s\n' "$*"; }
fail() {
    printf '\n%s\n' "$*" >&2
    exit 1
}

# step "what" command...: runs it, prints how long it took; on failure prints the end of what it said.
step() {
    local what=$1 log start status
    shift
    log=$(mktemp)
    start=$SECONDS
    printf '  %-58s' "$what"
    set +e
    ("$@") >"$log" 2>&1
    status=$?
    set -e
    if [ "$status" -ne 0 ]; then
        printf 'FAILED after %d s\n' $((SECONDS - start))
        tail -n 40 "$log" >&2
        rm -f "$log"
        fail "\"$what\" failed: see above."
    fi
    printf '%4d s\n' $((SECONDS - start))
    rm -f "$log"
}

have() { command -v "$1" >/dev/null 2>&1; }

on_debian_as_root() { [ "$(id -u)" -eq 0 ] && [ -e /etc/debian_version ] && have apt-get; }

# need COMMAND PACKAGE: installs the package where we may, otherwise says how.
need() {
    local command=$1 package=$2
    have "$command" && return
    if on_debian_as_root; then
        step "installing $package (for $command)" apt_install "$package"
    else
        fail "$command is missing. On Debian: apt-get install $package   (as root, compose/up does it itself)"
    fi
}

apt_install() {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

need_docker() {
    need docker docker.io
    if ! docker info >/dev/null 2>&1; then
        if on_debian_as_root && have service; then
            service docker start >/dev/null 2>&1 || true
            for _ in $(seq 20); do
                docker info >/dev/null 2>&1 && break
                sleep 1
            done
        fi
        docker info >/dev/null 2>&1 || fail "The Docker daemon does not answer (docker info). Start it (service docker start), or run this as a user who may use it (root, or group docker)."
    fi
    if ! docker compose version >/dev/null 2>&1; then
        need docker-compose docker-compose
    fi
}

# The compose plugin where it is there, docker-compose 1.29 otherwise.
if docker compose version >/dev/null 2>&1; then
    compose_command=(docker compose)
else
    compose_command=(docker-compose)
fi

# WARDEN_ENSEMBLE=1: three ZooKeeper servers instead of one. WARDEN_COMPOSE_FILES: further files over ours.
compose() {
    local files=(-f "$compose_dir/docker-compose.yml") file
    if [ -n "${WARDEN_ENSEMBLE:-}" ]; then files+=(-f "$compose_dir/ensemble.yml"); fi
    for file in ${WARDEN_COMPOSE_FILES:-}; do files+=(-f "$file"); done
    "${compose_command[@]}" "${files[@]}" "$@"
}

# fingerprint PATH...: changes when any file below the paths does.
fingerprint() {
    (cd "$root" && find "$@" -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
}
