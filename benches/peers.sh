#!/bin/sh
# Ours beside tableflip, under the same storm:
#
#     benches/peers.sh [ROUNDS]
#
# Needs golang and golang-github-cloudflare-tableflip-dev (Debian), and no network. Builds both
# servers and the storm (examples/hups.rs), and runs three storms against the one and the other in
# turn, on loopback. Nothing fails on a figure; what the storm calls a failure is printed.
set -eu

rounds=${1:-2}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
for tool in cargo go awk; do
    command -v "$tool" >/dev/null || { echo "peers.sh: $tool is not installed" >&2; exit 2; }
done
place=$(mktemp -d)
place=$(readlink -f "$place")

# Ends the servers, known by their programs, which nobody else has.
end_servers() {
    for process in /proc/[0-9]*; do
        case $(readlink "$process/exe" 2>/dev/null || true) in
            "$place/"*) kill -s KILL "${process#/proc/}" 2>/dev/null || true ;;
        esac
    done
}
trap 'end_servers; rm -rf "$place"' EXIT
trap 'exit 130' INT TERM HUP

build() {
    target=${CARGO_TARGET_DIR:-$here/../target}
    cargo build --quiet --release --manifest-path "$here/../Cargo.toml" --target-dir "$target" \
        --example demo --example hups
    cp "$target/release/examples/demo" "$place/ours"
    cp "$target/release/examples/hups" "$place/hups"
    GO111MODULE=off GOPATH=/usr/share/gocode \
        go build -o "$place/tableflip" "$here/peers/tableflip/main.go"
}

# Starts a server on any port and waits until its pid file is there.
start() {
    case $1 in
        ours) "$place/ours" --listen 127.0.0.1:0 --pid-file "$place/pid" --log-level warn \
            --probation 0 ;;
        tableflip) "$place/tableflip" -listen 127.0.0.1:0 -pid-file "$place/pid" ;;
    esac >>"$place/$1.log" 2>&1 &
    tries=0
    until [ -s "$place/pid" ]; do
        tries=$((tries + 1))
        [ "$tries" -le 100 ] || { echo "peers.sh: $1 does not start" >&2; exit 1; }
        sleep 0.05
    done
}

# The port on which a process listens: its sockets are in /proc, and so are their addresses.
port_of() {
    inodes=$(for fd in "/proc/$1/fd"/*; do readlink "$fd" || true; done | tr -dc '0-9\n')
    hex=$(printf '%s\n' "$inodes" | awk '
        NR == FNR { own[$1]; next }
        $4 == "0A" && $10 in own { sub(/.*:/, "", $2); print $2; exit }' - /proc/net/tcp)
    printf '%d\n' "0x$hex"
}

# A figure of the storm's JSON: NAME, or OBJECT and NAME.
figure() {
    case $# in
        1) pattern="\"$1\":\([^,}]*\)" ;;
        2) pattern="\"$1\":{[^}]*\"$2\":\([^,}]*\)" ;;
    esac
    sed -n "s/.*[{,]$pattern.*/\1/p" "$place/report" | sed 's/null/-/; s/"//g'
}

row() {
    printf '%-4s %-10s %8s %10s %7s %7s %10s %14s %6s  %s\n' "$@"
}

# One storm: its letter, the server, and the storm's flags.
storm() {
    letter=$1 server=$2
    shift 2
    rm -f "$place/pid"
    start "$server"
    address=127.0.0.1:$(port_of "$(cat "$place/pid")")
    "$place/hups" --addr "$address" --pid-file "$place/pid" --calm-seconds 1 --settle-ms 500 \
        --json "$@" >"$place/report" 2>"$place/failures" || true
    # The clients are gone; an upgrade that had to wait for them is carried out now.
    sleep 1
    later=0
    [ "$(cat "$place/pid")" = "$(figure server_pid)" ] || later=1
    row "$letter" "$server" "$(figure dropped total)" \
        "$(figure upgrades_seen)/$(figure signals_sent)" \
        "$(figure upgrades_started_after_last_signal)" "$later" \
        "$(figure time_to_ready_ms median)" \
        "$(figure worst_before_signal_us)/$(figure worst_after_signal_us)" \
        "$(figure processes_left)" "$(figure end)"
    sed "s/^/     /" "$place/failures"
    end_servers
}

build
cat <<'TEXT'
(a) 2000 short connections/s, 30 HUPs 200 ms apart
(b) 2000 short connections/s, 100 HUPs 1 to 5 ms apart
(c) the same as (a) with 20 long connections, 10 HUPs 500 ms apart, cut off after 10 s

after  upgrades that started after the last HUP      later  one more when all clients had left
ready  ms from a HUP to the pid file's change        worst  latency before/after a HUP, µs, medians
left   processes at the end of the storm; 1 is right

TEXT
row '' server dropped upgrades after later ready worst left end
round=0
while [ "$round" -lt "$rounds" ]; do
    round=$((round + 1))
    for server in ours tableflip; do
        storm a "$server" --short-rate 2000 --long-conns 0 --hups 30 --interval-ms 200 --seed "$round"
    done
    for server in ours tableflip; do
        storm b "$server" --short-rate 2000 --long-conns 0 --hups 100 --interval-ms 1-5 \
            --seed "$round"
    done
    for server in ours tableflip; do
        storm c "$server" --short-rate 2000 --long-conns 20 --hups 10 --interval-ms 500 \
            --seed "$round" --max-seconds 10
    done
done
for server in ours tableflip; do
    echo
    echo "what $server said, counted:"
    sed 's/^\[[0-9]*\] *//; s/^[0-9/]* [0-9:]* *//' "$place/$server.log" | sort | uniq -c |
        sort -rn | head -n 5
done
