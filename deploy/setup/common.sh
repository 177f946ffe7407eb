# shellcheck shell=bash disable=SC2034 # the steps use these names
# What every set-up step shares: words to the user, patience with networks, and stamps that make the second run quick.
# Sourced, not run. Works with bash 3.2, so that macOS gets as far as it can.

SETUP_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$SETUP_DIR/../.." && pwd)
VENV=$ROOT/.venv
TOOLS=$VENV/tools
STAMPS=$VENV/stamps
LOG=$ROOT/.venv/setup.log

# Seconds between two tries of a download: a registry or a mirror may be out of reach for some minutes.
read -r -a PAUSES <<<"${SETUP_PAUSES:-5 10 20 40 80 120}"

say() { printf 'set-up: %s\n' "$*" >&2; }

fail() {
    say "$*"
    exit 1
}

# digest FILE…: one number for the content of all files.
digest() {
    if command -v sha256sum >/dev/null 2>&1; then
        cat "$@" | sha256sum | cut -c1-64
    else
        cat "$@" | shasum -a 256 | cut -c1-64
    fi
}

# done_before STEP DIGEST: whether this step already ran on the same input.
done_before() { [ -f "$STAMPS/$1" ] && [ "$(cat "$STAMPS/$1")" = "$2" ]; }

mark_done() {
    mkdir -p "$STAMPS"
    printf '%s\n' "$2" >"$STAMPS/$1"
}

# What no second try mends. A missing version is not that: it is also what pip says of an index out of reach.
hopeless() { grep -qiE 'hash mismatch|do not match the hashes|EINTEGRITY' "$LOG"; }

# patiently WHAT COMMAND…: run the command, again and again with growing pauses; its output goes to the log.
patiently() {
    local what=$1 try=0 pause
    shift
    mkdir -p "$(dirname "$LOG")"
    while :; do
        if "$@" >"$LOG" 2>&1 </dev/null; then return 0; fi
        pause=${PAUSES[$try]:-}
        if [ -z "$pause" ] || hopeless; then
            say "$what: gave up. The last lines of the output:"
            tail -n 15 "$LOG" >&2
            return 1
        fi
        try=$((try + 1))
        say "$what: did not work yet (a mirror may be out of reach). Trying again in $pause s, $((${#PAUSES[@]} - try)) tries left after that."
        sleep "$pause"
    done
}
