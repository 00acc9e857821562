#!/usr/bin/env bash
# From a fresh checkout to R1-Zero in minutes on two cores: environment, recipe, summary. Arguments are Hydra overrides:
#
#   bash launch/quickstart.sh seed=1 stages.zero.steps=20
#
# Run again, it resumes: what is done is not done twice. Installs nothing outside the checkout (environment: see launch/setup_env.sh).
set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export R1MEGA_VENV=${R1MEGA_VENV:-$REPO/.venv}
bash "$REPO/launch/setup_env.sh"

OUTPUT=""
for argument in "$@"; do
    case $argument in output_dir=*) OUTPUT=${argument#output_dir=} ;; esac
done
if [ -z "$OUTPUT" ]; then
    OUTPUT=$REPO/runs/r1_zero_tiny
    set -- "output_dir=$OUTPUT" "$@"
fi
"$R1MEGA_VENV/bin/python" -m r1mega run recipe=r1_zero_tiny "$@"
"$R1MEGA_VENV/bin/python" -m r1mega.observe.summary "$OUTPUT"
