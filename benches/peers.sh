#!/bin/sh
# Builds the peers that the benches `hups` and `faults` put beside ours, and says of each whether it
# is there or how to get it:
#
#     benches/peers.sh [FOLDER]
#
# FOLDER is outside the tree: ${TMPDIR:-/tmp}/tablecloth-peers, unless another is named. Each peer is
# a package of its own, so that one that cannot be built leaves the others alone. What cargo and go
# say is in FOLDER/NAME.log. The status is 0 if everything that can be built here was built.
set -u

folder=${1:-${TMPDIR:-/tmp}/tablecloth-peers}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
mkdir -p "$folder" || exit 2
folder=$(CDPATH='' cd -- "$folder" && pwd)
status=0

say() {
    printf '%-12s %s\n' "$1" "$2"
}

# A package of Rust: its folder, and the programs that it makes.
rust() {
    package=$1
    shift
    for program in "$@"; do rm -f "$folder/$program"; done
    if ! command -v cargo >/dev/null; then
        for program in "$@"; do say "$program" "missing: needs cargo"; done
    elif cargo build --release --locked --manifest-path "$here/peers/$package/Cargo.toml" \
        --target-dir "$folder/target" >"$folder/$package.log" 2>&1; then
        for program in "$@"; do
            cp "$folder/target/release/$program" "$folder/$program"
            say "$program" "built"
        done
    else
        status=1
        reason=$(grep -m 1 '^error' "$folder/$package.log")
        for program in "$@"; do
            say "$program" "missing: ${reason:-cargo failed}; see $folder/$package.log"
        done
    fi
}

tableflip() {
    # Where Debian's package puts the source.
    source=/usr/share/gocode/src/github.com/cloudflare/tableflip
    rm -f "$folder/tableflip"
    if ! command -v go >/dev/null || [ ! -d "$source" ]; then
        say tableflip "missing: apt-get install golang-go golang-github-cloudflare-tableflip-dev"
    elif GO111MODULE=off GOPATH=/usr/share/gocode \
        go build -o "$folder/tableflip" "$here/peers/tableflip/main.go" >"$folder/tableflip.log" 2>&1
    then
        say tableflip "built"
    else
        status=1
        say tableflip "missing: go failed; see $folder/tableflip.log"
    fi
}

# One that a distribution has: its name, the package, and how to ask it for its version.
installed() {
    if command -v "$1" >/dev/null; then
        say "$1" "installed: $("$1" $3 2>&1 | sed -n '1s/.*version[: ]*//; 1s/ - .*//p')"
    else
        say "$1" "missing: apt-get install $2"
    fi
}

tableflip
rust ecdysis ecdysis
rust shellflip shellflip
rust plain reuseport activated activate
rust pingora pingora
installed haproxy haproxy -v
installed nginx 'nginx libnginx-mod-stream' -v
if command -v envoy >/dev/null; then
    say envoy "installed, and not measured: nobody has written how it is run here"
else
    say envoy "missing: Debian has no package of it; its makers have one at apt.envoyproxy.io"
fi
exit "$status"
