#!/usr/bin/env bash
# Makes this machine ready for the portal; doing it again costs a blink. `setup.sh run` is for users, `setup.sh dev` adds what tests need.
# SETUP_PACKAGES=no leaves the distribution's packages alone. SETUP_PAUSES="5 10" sets the pauses between tries of a download, in seconds.
set -euo pipefail

# shellcheck source=deploy/setup/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=deploy/setup/packages.sh
. "$SETUP_DIR/packages.sh"
# shellcheck source=deploy/setup/python.sh
. "$SETUP_DIR/python.sh"
# shellcheck source=deploy/setup/s3-clients.sh
. "$SETUP_DIR/s3-clients.sh"
# shellcheck source=deploy/setup/frontend.sh
. "$SETUP_DIR/frontend.sh"

profile=${1:-run}
case $profile in run | dev) ;; *) fail "usage: setup.sh [run|dev]" ;; esac

mkdir -p "$VENV"
lists=("$SETUP_DIR/packages.txt")
[ "$profile" = run ] || lists+=("$SETUP_DIR/packages-dev.txt")
[ "${SETUP_PACKAGES:-yes}" = no ] || install_packages "${lists[@]}"
ensure_environment
ensure_tools || fail "without uv there is nothing to install Python packages with; run it again once the network is back"
ensure_requirements requirements.txt "Python packages" || fail "the portal needs them to start; run it again once the network is back"
[ "$profile" = run ] || ensure_requirements requirements-dev.txt "Python packages for tests" || fail "the tests need them; run it again once the network is back"
[ "$profile" = run ] || ensure_s3_clients || fail "the tests need them all; run it again once what is missing can be had"
ensure_binding
ensure_frontend "$profile"
