# shellcheck shell=bash
# The scripts in compose/ and tests/ share this: messages, timed steps, prerequisites.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
compose_dir=$root/compose

# The compose file and the scripts use the same two names.
export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-warden}
# shellcheck disable=SC2034 # the scripts that source this file use it
prefix=${WARDEN_PREFIX:-}

say() { printf '%s\n' "$*"; }
fail() {
    printf '\n%s\n' "$*" >&2
    exit 1
}

# The finished steps, as "SECONDS NAME", and the step that is running.
steps=() current_step='' step_start=0

begin_step() { current_step=$1 step_start=$SECONDS; }
end_step() {
    steps+=("$((SECONDS - step_start)) $current_step")
    current_step=''
}

# print_steps: prints every step with its time. A step that is still running has failed, or was interrupted.
print_steps() {
    local line
    for line in "${steps[@]}"; do printf '  %-58s%4d s\n' "${line#* }" "${line%% *}"; done
    [ -z "$current_step" ] || printf '  %-58s%4d s  FAILED\n' "$current_step" $((SECONDS - step_start))
}

# step NAME COMMAND...: runs the command and prints its time. On failure it prints the end of the command's output.
step() {
    local log status
    begin_step "$1"
    shift
    log=$(mktemp)
    printf '  %-58s' "$current_step"
    set +e
    (set -e; "$@") >"$log" 2>&1
    status=$?
    set -e
    if [ "$status" -ne 0 ]; then
        printf 'FAILED after %d s\n' $((SECONDS - step_start))
        tail -n 40 "$log" >&2
        rm -f "$log"
        fail "\"$current_step\" failed: see above."
    fi
    printf '%4d s\n' $((SECONDS - step_start))
    rm -f "$log"
    end_step
}

# shown NAME COMMAND...: a step whose output is shown. `set -e` does not act within a function that is the command.
shown() {
    begin_step "$1"
    shift
    printf '  %s\n' "$current_step"
    "$@" || fail "\"$current_step\" failed: see above."
    end_step
}

# again COMMAND...: runs a command that needs the network, up to three times.
again() {
    local try status=0
    for try in 1 2 3; do
        set +e
        (set -e; "$@")
        status=$?
        set -e
        [ "$status" -ne 0 ] || return 0
        [ "$try" -eq 3 ] || { printf '"%s" failed, once more\n' "$*" >&2; sleep $((5 * try)); }
    done
    return "$status"
}

# Cargo retries by itself.
export CARGO_NET_RETRY=${CARGO_NET_RETRY:-8}

have() { command -v "$1" >/dev/null 2>&1; }

on_debian_as_root() { [ "$(id -u)" -eq 0 ] && [ -e /etc/debian_version ] && have apt-get; }

# need COMMAND PACKAGE: installs the package if the script may, and prints the command to install it otherwise.
need() {
    local command=$1 package=$2
    have "$command" && return
    if on_debian_as_root; then
        step "installing $package (for $command)" again apt_install "$package"
    else
        fail "$command is missing. On Debian: apt-get install $package   (as root, compose/up does it itself)"
    fi
}

apt_install() {
    # apt-get fails if one of many sources does not answer. The package may come from another one.
    apt-get update -qq || true
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
        docker info >/dev/null 2>&1 || fail "The Docker daemon does not answer (docker info). Start it \
(service docker start), or run this as a user who may use it (root, or group docker)."
    fi
    if ! docker compose version >/dev/null 2>&1; then
        need docker-compose docker-compose
    fi
}

# docker-compose waits 60 s for the Docker daemon, which is too short on a busy machine.
export COMPOSE_HTTP_TIMEOUT=${COMPOSE_HTTP_TIMEOUT:-300}

# The compose plugin if it is installed, docker-compose 1.29 otherwise.
if docker compose version >/dev/null 2>&1; then
    compose_command=(docker compose)
else
    compose_command=(docker-compose)
fi

# WARDEN_ENSEMBLE=1: three ZooKeeper servers instead of one. WARDEN_COMPOSE_FILES: further files, which override ours.
compose() {
    local files=(-f "$compose_dir/docker-compose.yml") file
    if [ -n "${WARDEN_ENSEMBLE:-}" ]; then files+=(-f "$compose_dir/ensemble.yml"); fi
    for file in ${WARDEN_COMPOSE_FILES:-}; do files+=(-f "$file"); done
    "${compose_command[@]}" "${files[@]}" "$@"
}

# Prints the mode that compose/mode has set on the running stack: enforce, observe, or nothing.
fencing_mode() {
    docker inspect --format '{{ range .Config.Env }}{{ println . }}{{ end }}' "${prefix}warden-pg-master" 2>/dev/null |
        sed -n 's/^WARDEN_FENCING_MODE=//p' || true
}

# fingerprint PATH...: a hash of all files below the paths.
fingerprint() {
    (cd "$root" && find "$@" -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
}
