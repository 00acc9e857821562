#!/usr/bin/env bash
# Runs the tests, making the environment first. From any folder, as root or not:
#
#   bash tests/run.sh                       every lane
#   bash tests/run.sh unit contract         only these; lanes: lint unit contract integration gpu py312
#   bash tests/run.sh unit -- -k doctor     what follows -- goes to pytest
#
# The closing lines repeat each lane's pytest line. Exit code 1 if any lane failed. Environment: as launch/setup_env.sh, and
# R1MEGA_VENV312, where the Python 3.12 environment lives (default <checkout>/.venv312).
set -uo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$REPO" || exit 1
VENV=${R1MEGA_VENV:-$REPO/.venv}
VENV312=${R1MEGA_VENV312:-$REPO/.venv312}
LANES=()
PYTEST_ARGS=()
while [ $# -gt 0 ]; do
    case $1 in
        lint | unit | contract | integration | gpu | py312) LANES+=("$1") ;;
        --) shift; PYTEST_ARGS=("$@"); break ;;
        *) echo "tests/run.sh: no lane is called '$1'; lanes: lint unit contract integration gpu py312" >&2; exit 2 ;;
    esac
    shift
done
[ ${#LANES[@]} -gt 0 ] || LANES=(lint unit contract integration gpu py312)

# Test processes get one thread each: the lanes below use as many processes as two cores carry.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=1
unset PYTHONPATH
SCRATCH=$(mktemp -d) || exit 1
trap 'rm -rf "$SCRATCH"' EXIT

FAILED=0
CLOSING=()
close() { CLOSING+=("$(printf '%-11s %s' "$1" "$2")"); }
notice() { echo "NOTICE [$1] $2"; close "$1" "NOT RUN: $2"; }

# Runs one lane: name, seconds it may take, the command. Its last pytest-like line is kept for the closing summary.
lane() {
    local name=$1 limit=$2 started=$SECONDS status out=$SCRATCH/$1.log last
    shift 2
    echo
    echo "=== lane $name"
    timeout --kill-after=30 "$limit" "$@" 2>&1 | tee "$out"
    status=${PIPESTATUS[0]}
    last=$(sed 's/\x1b\[[0-9;]*m//g' "$out" | grep -E '^(=+ )?[0-9]+ (passed|failed|error|skipped|deselected)|^=+ .* in [0-9.]+s' | tail -n 1 | sed 's/^=* *//; s/ *=*$//')
    if [ "$status" = 5 ]; then
        notice "$name" "no test was collected"
        return
    fi
    [ "$status" = 124 ] && last="stopped after its limit of $limit s"
    [ "$status" = 0 ] || FAILED=1
    close "$name" "$([ "$status" = 0 ] && echo "${last:-passed}" || echo "FAILED (exit code $status): ${last:-see above}") [lane: $((SECONDS - started)) s]"
    echo "=== lane $name ended with exit code $status after $((SECONDS - started)) s"
}

lint() {
    local status=0
    "$VENV/bin/ruff" check r1mega plugins tests launch || status=1
    # plugins/ is type-checked under the name it is imported by
    mkdir -p .mypy_cache/links && ln -sfn ../../plugins .mypy_cache/links/r1mega_plugins || return 1
    "$VENV/bin/mypy" || status=1
    return $status
}

# Skipped tests are listed with their reasons (-ra in pyproject.toml).
pytest_lane() {
    local name=$1 limit=$2 python=$3 folder=$4
    shift 4
    if ! compgen -G "tests/$folder/**/test_*.py" >/dev/null && ! compgen -G "tests/$folder/test_*.py" >/dev/null; then
        notice "$name" "there is no test in tests/$folder"
        return
    fi
    lane "$name" "$limit" "$python" -m pytest "tests/$folder" --durations=5 "$@" ${PYTEST_ARGS[@]+"${PYTEST_ARGS[@]}"}
}

find_python312() {
    local candidate
    for candidate in python3.12 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python /usr/bin/python3.12 /usr/local/bin/python3.12; do
        if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# The unit lane once more with Python 3.12 and the newest megatron-core. Not having the interpreter or its wheels is a notice, a failing test is red.
py312() {
    local python
    if [ "$("$VENV/bin/python" -c 'import sys; print(sys.version_info[:2] == (3, 12))')" = True ]; then
        notice py312 "the main environment is Python 3.12 already"
    elif ! python=$(find_python312); then
        notice py312 "no Python 3.12 interpreter on this machine (python3.12, or pyenv install 3.12)"
    elif ! R1MEGA_SETUP_TIMEOUT=${R1MEGA_SETUP_TIMEOUT:-900} bash launch/setup_env.sh --extras dev --venv "$VENV312" --python "$python"; then
        notice py312 "the environment for Python 3.12 could not be made (see above)"
    else
        pytest_lane py312 900 "$VENV312/bin/python" unit -n 2 --dist loadfile --timeout 120
    fi
}

bash launch/setup_env.sh --extras dev --venv "$VENV" || exit $?
"$VENV/bin/python" -c 'import sys; from importlib.metadata import version as v
print("Python %d.%d.%d," % sys.version_info[:3], "torch", v("torch") + ", megatron-core", v("megatron-core"))'

for name in "${LANES[@]}"; do
    case $name in
        lint) export -f lint; export VENV; lane lint 600 bash -c lint ;;
        unit) pytest_lane unit 900 "$VENV/bin/python" unit -n 2 --dist loadfile --timeout 120 ;;
        contract) pytest_lane contract 900 "$VENV/bin/python" contract --timeout 300 ;;
        integration) pytest_lane integration 3300 "$VENV/bin/python" integration --timeout 600 ;;
        gpu)
            if "$VENV/bin/python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
                pytest_lane gpu 900 "$VENV/bin/python" gpu --timeout 600
            else
                notice gpu "torch sees no CUDA GPU"
            fi ;;
        py312) py312 ;;
    esac
done

echo
echo "=== summary"
printf '%s\n' "${CLOSING[@]}"
# One line over all lanes, in pytest's own form.
printf '%s\n' "${CLOSING[@]}" | awk -v seconds="$SECONDS" -v failed="$FAILED" '
    { for (i = 1; i < NF; i++) if ($i ~ /^[0-9]+$/) {
        word = $(i + 1); sub(/[^a-z].*/, "", word); sub(/^errors$/, "error", word)
        if (word ~ /^(passed|failed|skipped|error|xfailed|xpassed|deselected)$/) count[word] += $i } }
    END {
        line = ""; n = split("failed error passed skipped deselected xfailed xpassed", order, " ")
        for (i = 1; i <= n; i++) if (count[order[i]]) line = line (line == "" ? "" : ", ") count[order[i]] " " order[i]
        if (line == "") line = failed ? "a lane failed" : "no tests ran"
        printf "===== %s in %.2fs =====\n", line, seconds }'
exit $FAILED
