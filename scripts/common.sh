# shellcheck shell=bash
# What the scripts share. To be sourced.

# find_cargo: makes sure that `cargo` can be called, also under sudo, where PATH lacks the Rust of the
# user who called it. Registry and git checkouts then go to root's own ~/.cargo, not to the user's.
find_cargo() {
    command -v cargo >/dev/null && return 0
    local home
    for home in "${HOME-}" "$(getent passwd "${SUDO_USER-root}" | cut -d: -f6)"; do
        if [[ -x $home/.cargo/bin/cargo ]]; then
            export PATH=$home/.cargo/bin:$PATH
            export RUSTUP_HOME=${RUSTUP_HOME-$home/.rustup}
            return 0
        fi
    done
    echo "$0: cargo is not in PATH: install Rust (https://rustup.rs)" >&2
    return 1
}

# need PROGRAM PACKAGE...: installs Debian packages if a program is missing.
need() {
    local program=$1
    shift
    command -v "$program" >/dev/null && return 0
    echo "== install $*"
    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"
}
