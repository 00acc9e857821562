#!/usr/bin/env bash
# From a fresh checkout to a tiny R1 on two cores: environment, the whole recipe, scorecard, report. Arguments are those of `r1mega run`:
#
#   bash launch/quickstart.sh                       every stage of R1, about twelve minutes after installation
#   bash launch/quickstart.sh recipe=r1_zero_tiny   a first look: R1-Zero alone, about three minutes
#   bash launch/quickstart.sh seed=1 stages.zero.steps=50
#
# Run again, it resumes: what is done is not done twice. Installs nothing outside the checkout (environment: see launch/setup_env.sh).
set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export R1MEGA_VENV=${R1MEGA_VENV:-$REPO/.venv}
bash "$REPO/launch/setup_env.sh"

RECIPE="" OUTPUT=""
for argument in "$@"; do
    case $argument in
        recipe=*) RECIPE=${argument#recipe=} ;;
        output_dir=*) OUTPUT=${argument#output_dir=} ;;
    esac
done
if [ -z "$RECIPE" ]; then
    RECIPE=r1_tiny
    set -- "recipe=$RECIPE" "$@"
fi
[ -n "$OUTPUT" ] || set -- "output_dir=$REPO/runs/$RECIPE" "$@"
exec "$R1MEGA_VENV/bin/python" -m r1mega run "$@"
