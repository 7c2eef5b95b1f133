#!/usr/bin/env bash
# A run on several GPU nodes under Slurm:
#
#     sbatch --nodes=4 launch/slurm.sh --config=configs/vqgan.py --workdir=/shared/runs/vqgan
#
# Arguments go to `python -m l2l_jax.main`. --workdir must be on storage that all nodes share. One process
# drives one GPU: --ntasks-per-node is the number of GPUs of a node. The program learns the rest from Slurm.
#
# Shortly before the time is up, on preemption and on `scancel --batch --signal=TERM JOB`, all processes save
# after the same step and the job goes back to the queue. So it does when a node fails. A mistake ends it.
#
# PYTHON: the interpreter (default: python). MAX_REQUEUES: how often the job goes back (default: 50).

#SBATCH --job-name=l2l
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=l2l-%j.log
#SBATCH --signal=B:TERM@180

set -uo pipefail

readonly restarts=${SLURM_RESTART_COUNT:-0}
readonly max_requeues=${MAX_REQUEUES:-50}
asked=0

stop() {
    trap '' TERM
    asked=1
    scancel --signal=TERM "$SLURM_JOB_ID" # to the processes of the step, not to this script
}
trap stop TERM

srun --kill-on-bad-exit=1 --label "${PYTHON:-python}" -m l2l_jax.main "$@" &
readonly step=$!
wait "$step"
code=$?
if [[ $asked == 1 ]]; then # the signal interrupted the wait
    wait "$step"
    code=$?
fi

case $code in
    0)
        exit 0
        ;;
    1 | 2)
        echo "Not queued again: exit code $code is a mistake that a restart does not mend." >&2
        exit "$code"
        ;;
esac
if ((restarts >= max_requeues)); then
    echo "Not queued again: this was requeue $restarts of at most $max_requeues." >&2
    exit "$code"
fi
echo "Exit code $code: queued again, to resume from the last checkpoint." >&2
scontrol requeue "$SLURM_JOB_ID"
