# shellcheck shell=bash
# Browser files of others: installed with npm outside static/, then only what pages load is copied to static/vendor/.

ensure_frontend() {
    local now
    now=$(digest "$ROOT/static/package.json" "$ROOT/static/package-lock.json" "$SETUP_DIR/vendor.txt")
    if [ -f "$ROOT/static/vendor/htmx.min.js" ]; then
        # What tests need includes what users need, and must not be taken away again by `make run`.
        done_before frontend-dev "$now" && return 0
        [ "$1" = run ] && done_before frontend-run "$now" && return 0
    fi
    say "installing browser files into static/vendor"
    local work=$VENV/frontend omit=()
    [ "$1" = dev ] || omit=(--omit=dev)
    mkdir -p "$work"
    cp "$ROOT/static/package.json" "$ROOT/static/package-lock.json" "$work/"
    if ! patiently "browser files" env PATH="$TOOLS/bin:$PATH" npm --prefix "$work" ci --ignore-scripts --no-audit --no-fund --loglevel=error "${omit[@]+"${omit[@]}"}"; then
        say "the console works without them, but slower and without charts and consoles; the next run tries again"
        return 0
    fi
    copy_vendor "$work/node_modules"
    mark_done "frontend-$1" "$now"
}

# Beside the old directory first: a portal that is running meanwhile never sees half of it.
copy_vendor() {
    local from=$1 fresh=$VENV/vendor source target
    rm -rf "$fresh"
    while read -r source target; do
        case $source in '' | '#'*) continue ;; esac
        mkdir -p "$fresh/$(dirname "$target")"
        cp -R "$from/$source" "$fresh/$target" || fail "static/package.json and deploy/setup/vendor.txt do not fit together: $source is not there"
    done <"$SETUP_DIR/vendor.txt"
    chmod -R u=rwX,go=rX "$fresh"
    rm -rf "$ROOT/static/vendor"
    mv "$fresh" "$ROOT/static/vendor"
}
