#!/bin/sh
# Make sure of what pip cannot install: Python >= 3.11 with venv, Mosquitto with its clients, cmake and a C++ compiler
# (llama-cpp-python is built from source). Changes nothing where all is there.
#
#     scripts/system.sh PYTHON

set -eu

python=${1:-python3}
path=$PATH:/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin:/opt/homebrew/bin # where Debian and Homebrew put Mosquitto

have() { PATH=$path command -v "$1" >/dev/null 2>&1; }
fail() {
    echo "error: $1" >&2
    exit 1
}
python_is_new() { "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

missing() {
    { [ -n "${MEETARA_MOSQUITTO:-}" ] || have mosquitto; } || echo mosquitto
    have mosquitto_pub || echo mosquitto-clients
    have cmake || echo cmake
    have c++ || have g++ || have clang++ || echo g++
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
}

if have "$python" && ! python_is_new; then
    fail "$("$python" --version) is too old, 3.11 or later is needed. Name another one: make PYTHON=python3.12 …"
fi

wanted=$(missing | tr '\n' ' ')
[ -n "$wanted" ] || exit 0

if have apt-get; then
    sudo=
    if [ "$(id -u)" != 0 ]; then
        have sudo || fail "missing: $wanted. Install them as root: apt-get install $wanted"
        sudo=sudo
    fi
    broker_was_here=$(have mosquitto && echo yes || echo no)
    echo "installing $wanted"
    install="$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $wanted"
    $install || { # a fresh machine has no package lists yet, an old one lists what is gone
        $sudo apt-get update && $install
    } || fail "apt-get did not install: $wanted. See its message above."
    # Debian starts a system-wide Mosquitto on 1883 with the package: the port on which the lab's own one listens.
    if [ "$broker_was_here" = no ] && have systemctl && systemctl is-active --quiet mosquitto; then
        echo "stopping the system-wide Mosquitto that was started with its package: the lab starts its own"
        $sudo systemctl disable --now mosquitto
    fi
elif have brew; then
    formulas=
    for name in $wanted; do
        case $name in
        mosquitto | mosquitto-clients) formulas="$formulas mosquitto" ;;
        python3-venv) formulas="$formulas python@3.12" ;;
        g++) fail "no C++ compiler. Install Apple's: xcode-select --install" ;;
        *) formulas="$formulas $name" ;;
        esac
    done
    # shellcheck disable=SC2086 # a list of formulas
    brew install $(printf '%s\n' $formulas | sort -u)
else
    fail "missing: $wanted. Install these (the names are Debian's) with your system's package manager, then run make again."
fi

python_is_new || fail "no Python 3.11 or later as '$python'. Install one and name it: make PYTHON=python3.12 …"
left=$(missing | tr '\n' ' ')
[ -z "$left" ] || fail "still missing after the installation: $left"
