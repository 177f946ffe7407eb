# shellcheck shell=bash
# The virtual environment: Python itself, uv and node as tools, then the pinned, hash-checked requirements.

# find_python: a Python that is new enough and can make virtual environments.
find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            printf '%s\n' "$name"
            return 0
        fi
    done
    return 1
}

ensure_environment() {
    "$VENV/bin/python" -c '' 2>/dev/null && [ -x "$TOOLS/bin/python" ] && return 0
    local python
    if ! python=$(find_python); then
        # A distribution whose python3 is too old may offer a newer one beside it.
        install_packages "$SETUP_DIR/packages-python.txt"
        python=$(find_python) || fail "needs Python 3.11 or newer with the venv module; on Debian and Ubuntu: sudo apt-get install python3-venv"
    fi
    if ! "$VENV/bin/python" -c '' 2>/dev/null; then
        say "making .venv with $("$python" --version)"
        "$python" -m venv --clear --without-pip "$VENV"
    fi
    "$python" -m venv --clear "$TOOLS"
}

ensure_tools() {
    local now
    now=$(digest "$SETUP_DIR/tools.txt")
    done_before tools "$now" && return 0
    say "installing uv and node into .venv/tools"
    patiently "uv and node" "$TOOLS/bin/python" -m pip install --disable-pip-version-check --no-input --require-hashes -r "$SETUP_DIR/tools.txt" || return 1
    mark_done tools "$now"
}

# install_requirements PYTHON WHAT…: uv is ten times as fast; pip knows the mirror that this machine may be set up for.
install_requirements() {
    local python=$1
    shift
    "$TOOLS/bin/uv" pip install --no-progress --python "$python" --require-hashes --build-constraints "$SETUP_DIR/build.txt" "$@" ||
        PIP_CONSTRAINT='' "$TOOLS/bin/python" -m pip --python "$python" install --disable-pip-version-check --no-input --require-hashes "$@"
}

ensure_requirements() {
    local name=$1 what=$2 now
    now=$(digest "$ROOT/$name" "$SETUP_DIR/build.txt")
    done_before "$name" "$now" && return 0
    say "installing $what ($name)"
    patiently "$what" install_requirements "$VENV/bin/python" -r "$ROOT/$name" || return 1
    mark_done "$name" "$now"
}

# The binding to libvirt is compiled here against the headers of this machine.
ensure_binding() {
    done_before requirements-engine.txt "$(digest "$ROOT/requirements-engine.txt" "$SETUP_DIR/build.txt")" && return 0
    if ! command -v cc >/dev/null 2>&1 || ! pkg-config --exists libvirt 2>/dev/null; then
        say "no C compiler or no libvirt headers: instances on this machine stay unavailable (sudo apt-get install gcc pkgconf python3-dev libvirt-dev adds them)"
        return 0
    fi
    ensure_requirements requirements-engine.txt "the binding to libvirt" || say "without the binding to libvirt, instances on this machine stay unavailable"
}
