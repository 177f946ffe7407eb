# shellcheck shell=bash
# S3 clients that the tests run against the gateway: those of the Python index in an environment of their own, the others from the distribution.

S3_CLIENTS=$VENV/s3-clients

ensure_s3_clients() {
    local now name
    now=$(digest "$SETUP_DIR/s3-clients.txt")
    if ! done_before s3-clients "$now" || ! "$S3_CLIENTS/bin/python" -c '' 2>/dev/null; then
        say "installing S3 clients for tests into .venv/s3-clients"
        # Emptied, so that what an older list had is gone.
        "$VENV/bin/python" -m venv --clear --without-pip "$S3_CLIENTS"
        patiently "S3 clients" install_requirements "$S3_CLIENTS/bin/python" -r "$SETUP_DIR/s3-clients.txt" || return 1
        mark_done s3-clients "$now"
    fi
    for name in rclone restic; do
        command -v "$name" >/dev/null 2>&1 || {
            say "$name is missing: sudo apt-get install $name adds it"
            return 1
        }
    done
}
