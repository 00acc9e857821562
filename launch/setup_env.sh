#!/usr/bin/env bash
# Makes the Python environment of this checkout, or finds it ready. Run it, do not source it:
#
#   bash launch/setup_env.sh [--extras dev] [--venv DIR] [--python PYTHON]
#
# Environment: R1MEGA_VENV          where the environment lives (default <checkout>/.venv)
#              R1MEGA_PYTHON        the interpreter to build it with (default: the first usable 3.11 or 3.12)
#              R1MEGA_TORCH_INDEX   package index that holds torch's CPU wheels (used only where there is no GPU)
#              R1MEGA_SETUP_TIMEOUT seconds one installation step may take (default 1800)
#
# Exit codes: 0 ready, 3 no usable interpreter, 4 a package cannot be had, 1 anything else. Silent when there is nothing to do.
set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${R1MEGA_VENV:-$REPO/.venv}
PYTHON=${R1MEGA_PYTHON:-}
EXTRAS=""
while [ $# -gt 0 ]; do
    case $1 in
        --extras | --venv | --python) [ $# -ge 2 ] || { echo "setup_env.sh: $1 needs a value" >&2; exit 1; } ;;&
        --extras) EXTRAS=$2 ;;
        --venv) VENV=$2 ;;
        --python) PYTHON=$2 ;;
        *) echo "setup_env.sh: unknown argument '$1'; known: --extras, --venv, --python" >&2; exit 1 ;;
    esac
    shift 2
done
case $VENV in /*) ;; *) VENV=$PWD/$VENV ;; esac
LOG=$VENV/setup.log
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_INPUT=1
unset PYTHONHOME PYTHONPATH PIP_USER

say() { echo "[setup] $*" >&2; }
fail() { local code=$1; shift; echo "[setup] error: $*" >&2; exit "$code"; }

# Prints "ok" for an interpreter that can build our environment, else what it lacks. A pyenv shim may exist and still not run.
probe() {
    "$1" - 2>/dev/null <<'PY' || echo "does not run"
import sys
missing = []
for module in ("venv", "ensurepip", "ssl", "ctypes"):
    try:
        __import__(module)
    except ImportError:
        missing.append(module)
if sys.version_info[:2] not in ((3, 11), (3, 12)):
    print("is Python %d.%d" % sys.version_info[:2])
elif missing:
    print("lacks the module " + " and ".join(missing))
else:
    print("ok")
PY
}

find_python() {
    local candidate verdict almost="" pyenv=${PYENV_ROOT:-$HOME/.pyenv}/versions
    local candidates=(python3.11 python3.12 python3 python)
    [ -n "$PYTHON" ] && candidates=("$PYTHON")
    for candidate in "${candidates[@]}" $( [ -n "$PYTHON" ] || ls -d "$pyenv"/3.1[12]*/bin/python /usr/bin/python3.1[12] /usr/local/bin/python3.1[12] 2>/dev/null ); do
        command -v "$candidate" >/dev/null 2>&1 || continue
        verdict=$(probe "$candidate")
        case $verdict in
            ok) "$candidate" -c 'import sys; print(sys.executable)'; return ;;
            lacks*) almost="$candidate $verdict" ;;
        esac
    done
    if [ -n "$almost" ]; then
        fail 3 "$almost; on Debian and Ubuntu: apt-get install python3-venv (or python3.11-venv, python3.12-venv)"
    elif [ -n "$PYTHON" ]; then
        fail 3 "'$PYTHON' is not a usable Python 3.11 or 3.12: $(command -v "$PYTHON" >/dev/null 2>&1 && probe "$PYTHON" || echo "not found")"
    fi
    fail 3 "no Python 3.11 or 3.12 found; install one (python3.11, python3.12, or pyenv install 3.11) or set R1MEGA_PYTHON"
}

has_gpu() { { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; } || compgen -G '/dev/nvidia[0-9]*' >/dev/null; }

# The environment is current when its stamp carries the digest of everything that decides what is in it.
digest() {
    "$VENV/bin/python" - "$REPO" "$CONSTRAINTS" <<'PY'
import hashlib, pathlib, sys
repo, constraints = map(pathlib.Path, sys.argv[1:])
content = (repo / "pyproject.toml").read_bytes() + constraints.read_bytes() + f"{repo} {sys.version}".encode()
print(hashlib.sha256(content).hexdigest())
PY
}

pip() {
    local limit=()
    command -v timeout >/dev/null 2>&1 && limit=(timeout "${R1MEGA_SETUP_TIMEOUT:-1800}")
    echo "+ pip $*" >>"$LOG"
    "${limit[@]}" "$VENV/bin/python" -m pip "$@" >>"$LOG" 2>&1
}

# What went wrong, from pip's exit status and the end of its log.
explain() {
    local status=$1 why="pip failed"
    local recent; recent=$(tail -n 60 "$LOG")
    if [ "$status" = 124 ]; then why="took longer than ${R1MEGA_SETUP_TIMEOUT:-1800} s (R1MEGA_SETUP_TIMEOUT)"
    elif grep -q 'No space left on device' <<<"$recent"; then why="the disk is full"
    elif grep -qE 'Permission denied|Read-only file system' <<<"$recent"; then why="no permission to write to $VENV or $REPO"
    elif grep -qE 'NameResolution|name resolution|NewConnectionError|Network is unreachable|Connection refused|ConnectTimeout|Max retries exceeded' <<<"$recent"; then
        why="the package index cannot be reached (no network?)"
    elif grep -q 'from versions: none' <<<"$recent"; then why="the package index does not have it or cannot be reached (no network?)"
    elif grep -qE 'No matching distribution|Could not find a version' <<<"$recent"; then why="the package index has no fitting version"
    elif grep -qE "gcc|cc' failed|Python.h|build_ext|legacy-install-failure" <<<"$recent"; then
        why="a package is built from source here, which needs a C compiler and Python's headers (gcc, python3-dev)"
    fi
    echo "$why"
}

give_up() {
    local why; why=$(explain "$1")
    tail -n 8 "$LOG" | cut -c 1-160 | sed 's/^/[setup]   /' >&2
    fail 4 "cannot install $2: $why; the whole log: $LOG"
}

make_venv() {
    if [ -x "$VENV/bin/python" ] && [ -z "$PYTHON" ] && [ "$(probe "$VENV/bin/python")" = ok ]; then return; fi
    local python; python=$(find_python)
    if [ -x "$VENV/bin/python" ] && [ "$(probe "$VENV/bin/python")" = ok ]; then
        [ "$("$VENV/bin/python" -c 'import sys; print(sys.base_prefix)')" = "$("$python" -c 'import sys; print(sys.base_prefix)')" ] && return
    fi
    if [ -e "$VENV" ] && [ ! -e "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV")" ]; then
        fail 1 "$VENV is not empty and not a Python environment; set R1MEGA_VENV to another folder"
    fi
    if [ -e "$VENV" ] && [ ! -w "$VENV" ]; then
        fail 1 "the environment $VENV does not run for $(id -un) and is not yours to replace; set R1MEGA_VENV to a folder of your own"
    fi
    say "making $VENV with $("$python" --version)"
    "$python" -m venv --clear "$VENV" >&2 || fail 1 "$python cannot make an environment in $VENV (is the folder writable?)"
}

# Without a GPU torch's CPU build is wanted (0.2 GB; the default one brings 5 GB of CUDA): the given index, then the configured ones.
install_torch() {
    "$VENV/bin/python" -c 'import torch' 2>/dev/null && return
    local pin; pin=$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' "$CONSTRAINTS")
    if [ -z "$pin" ]; then
        say "installing torch"
        pip install "torch>=2.6,<3" || give_up $? torch
        return
    fi
    say "installing torch $pin for CPU"
    if [ -n "${R1MEGA_TORCH_INDEX:-}" ]; then
        pip install --index-url "$R1MEGA_TORCH_INDEX" "torch==$pin" || give_up $? "torch $pin from R1MEGA_TORCH_INDEX"
    elif ! pip install --only-binary torch "torch==$pin+cpu"; then
        tail -n 3 "$LOG" | grep -q 'from versions: none' && give_up 1 "torch $pin"
        say "no CPU build of torch on the configured index: installing the default build with its CUDA libraries, 2.5 GB (R1MEGA_TORCH_INDEX avoids that)"
        pip install "torch==$pin" || give_up $? "torch $pin"
    fi
}

prepare_venv() {
    mkdir -p "$(dirname "$VENV")" 2>/dev/null || fail 1 "cannot make $(dirname "$VENV"); set R1MEGA_VENV to a folder you may write to"
    # two set-ups at once (quickstart beside the tests) take turns
    if command -v flock >/dev/null 2>&1 && { exec 9>"$VENV.lock"; } 2>/dev/null; then flock 9; fi
    make_venv
}

CONSTRAINTS=$REPO/launch/constraints/$(has_gpu && echo gpu || echo cpu).txt
prepare_venv
DIGEST=$(digest)
stamps=("$VENV/.r1mega-$EXTRAS.stamp")
[ -n "$EXTRAS" ] || stamps+=("$VENV/.r1mega-dev.stamp") # dev holds all that the plain installation has
for stamp in "${stamps[@]}"; do
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$DIGEST" ]; then exit 0; fi
done
: >"$LOG" || fail 1 "cannot write to $VENV; set R1MEGA_VENV to a folder you may write to"
install_torch
say "installing r1mega${EXTRAS:+[$EXTRAS]}"
install() { pip install --constraint "$CONSTRAINTS" --editable "$REPO$1"; }
# reasoning-gym builds pycosat from source: wanted, but no reason to fail on a machine without a compiler
install "[gym${EXTRAS:+,$EXTRAS}]" || {
    why=$(explain $?)
    install "${EXTRAS:+[$EXTRAS]}" || give_up $? "r1mega${EXTRAS:+[$EXTRAS]}"
    say "notice: without reasoning-gym (its task and reward are off): $why"
}
echo "$DIGEST" >"$VENV/.r1mega-$EXTRAS.stamp"
say "ready: $VENV"
