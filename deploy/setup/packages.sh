# shellcheck shell=bash
# Distribution packages: QEMU, libvirt and what the guest image is built from. Only missing ones, only where apt rules.

# wanted LIST…: one line per package; alternatives are separated by |.
wanted() { sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' "$@"; }

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# missing LIST…: the lines of which no alternative is installed. One look at the database for all: the second run has to be quick.
missing() {
    dpkg-query -W -f='${db:Status-Status} ${Package}\n' 2>/dev/null |
        awk 'NR == FNR { if ($1 == "installed") have[$2] = 1; next }
             { n = split($0, names, "|"); for (i = 1; i <= n; i++) if (names[i] in have) next; print }' - <(wanted "$@")
}

# available NAME|NAME…: the first alternative that the distribution offers.
available() {
    local name
    for name in ${1//|/ }; do
        if [[ $(apt-cache policy "$name" 2>/dev/null) =~ Candidate:\ [^\(] ]]; then
            printf '%s\n' "$name"
            return 0
        fi
    done
    return 1
}

# How to become root: nothing, sudo, or not at all. A password is asked for only where somebody can type it.
root_prefix() {
    if [ "$(id -u)" = 0 ]; then
        printf 'env\n'
    elif command -v sudo >/dev/null 2>&1 && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        printf 'sudo env\n'
    else
        return 1
    fi
}

apt_get() {
    # shellcheck disable=SC2086 # two words on purpose
    $AS_ROOT DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"
}

# Servers that only tests need must not stay behind as services of this machine; tests start their own.
stop_service() {
    # shellcheck disable=SC2086
    if [ -d /run/systemd/system ]; then
        $AS_ROOT systemctl disable --now "$1" >/dev/null 2>&1 || say "could not switch off the service $1; tests do not need it"
    elif [ -x "/etc/init.d/$1" ]; then
        $AS_ROOT "/etc/init.d/$1" stop >/dev/null 2>&1 || say "could not stop the service $1; tests do not need it"
    fi
}

# A machine that boots by itself must not find a second kernel to boot: there the kernel of guests is only unpacked, beside the portal's data.
KERNEL=linux-image-cloud-amd64
KERNEL_DIR=${DATA_DIR:-$ROOT/var}/guest-kernel

only_unpacked() { [ "$1" = "$KERNEL" ] && { [ -e /boot/grub ] || [ -e /boot/loader ] || [ -e /boot/efi ]; }; }

unpack_kernel() {
    local package
    package=$(apt-cache depends "$KERNEL" | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')
    rm -rf "$KERNEL_DIR.new"
    mkdir -p "$KERNEL_DIR.new"
    (cd "$KERNEL_DIR.new" && apt-get -q -o APT::Sandbox::User=root download "$package" && dpkg-deb -x ./*.deb . && rm ./*.deb) || return 1
    # The order in which its drivers load, which an installed package would have written itself.
    $AS_ROOT env "PATH=$PATH:/usr/sbin:/sbin" depmod --basedir "$KERNEL_DIR.new" "$(ls "$KERNEL_DIR.new/lib/modules")" || return 1
    rm -rf "$KERNEL_DIR"
    mv "$KERNEL_DIR.new" "$KERNEL_DIR"
}

# install_packages LIST…: what is missing, if it can be had; says what could not and goes on.
install_packages() {
    if ! command -v apt-get >/dev/null 2>&1; then
        say "this is not Debian or Ubuntu: QEMU, libvirt and the tools in deploy/setup/packages.txt are yours to install; the portal starts without them."
        return 0
    fi
    local absent
    absent=$(missing "$@")
    [ ! -d "$KERNEL_DIR" ] || absent=$(grep -v "^$KERNEL" <<<"$absent" || true)
    [ -n "$absent" ] || return 0
    if ! AS_ROOT=$(root_prefix); then
        say "without root these distribution packages stay missing, and what needs them is shown as unavailable. To add them:"
        say "  sudo apt-get update && sudo apt-get install --no-install-recommends $(printf '%s' "$absent" | sed 's/|.*//' | tr '\n' ' ')"
        return 0
    fi
    if ! compgen -G '/var/lib/apt/lists/*Packages*' >/dev/null; then
        say "reading the package lists of the distribution"
        patiently "package lists" apt_get update || return 0
    fi
    local line name names='' unknown=''
    for line in $absent; do
        if ! name=$(available "$line"); then
            unknown="$unknown $line"
        elif ! only_unpacked "$name"; then
            names="$names $name"
        else
            say "fetching the kernel of guests"
            patiently "kernel of guests" unpack_kernel || say "without it the guest image cannot be built"
        fi
    done
    [ -z "$unknown" ] || say "not offered by this distribution:$unknown"
    [ -n "$names" ] || return 0
    say "installing distribution packages:$names"
    # shellcheck disable=SC2086
    if ! apt_get install --no-install-recommends $names >"$LOG" 2>&1 </dev/null; then
        # Lists may be older than the mirror.
        # shellcheck disable=SC2086
        patiently "package lists" apt_get update && patiently "distribution packages" apt_get install --no-install-recommends $names || return 0
    fi
    for name in $names; do
        case $name in
            postgresql | redis-server) stop_service "$name" ;;
            radosgw) stop_service ceph.target && stop_service ceph-crash && stop_service smartmontools ;;
            rabbitmq-server) stop_service "$name" && stop_service epmd.socket && stop_service epmd && { epmd -kill >/dev/null 2>&1 || true; } ;;
        esac
    done
}
