#!/usr/bin/env bash
# A run on all hosts of a Cloud TPU pod slice, started again whenever the slice is preempted:
#
#     TPU=l2l ZONE=us-central2-b TYPE=v4-32 SHARED=10.0.0.2:/share \
#         launch/tpu_pod.sh --config=configs/vqgan.py --workdir=/mnt/l2l/runs/vqgan
#
# Arguments go to `python -m l2l_jax.main` on every host. The slice is made if it is not there, this checkout
# is copied to its hosts and installed; it stays when the run ends: gcloud compute tpus tpu-vm delete.
#
# TPU, ZONE  name and zone of the slice
# TYPE       accelerator type, such as v4-32 (32 TensorCores: 16 chips on 4 hosts)
# SHARED     an NFS export that all hosts mount at /mnt/l2l, such as Filestore's; the workdir must be there
# VERSION    runtime version of the slice (default: tpu-ubuntu2204-base)
# SPOT       1: preemptible capacity (default); 0: on demand
# MAX_RESTARTS  how often the run is started again (default: 100)
#
# Needs gcloud, logged in, with a project. Ctrl-C or SIGTERM has all hosts save after the same step.

set -euo pipefail

: "${TPU:?the name of the slice}" "${ZONE:?its zone}" "${TYPE:?its type, such as v4-32}"
: "${SHARED:?an NFS export, host:/path}"
readonly version=${VERSION:-tpu-ubuntu2204-base} spot=${SPOT:-1} max_restarts=${MAX_RESTARTS:-100}
readonly pause=${PAUSE:-60} # seconds before another try
root=$(cd "$(dirname "$0")/.." && pwd)
readonly root
stopping=0

tpu() { gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }

on_all_hosts() { tpu ssh "$TPU" --worker=all --command="$1"; }

state() { tpu describe "$TPU" --format='value(state)' 2>/dev/null || echo ABSENT; }

# Makes the slice if need be; a preempted one has to be deleted first.
ensure_slice() {
    local options=(--accelerator-type="$TYPE" --version="$version")
    [[ $spot == 1 ]] && options+=(--spot)
    until [[ $(state) == READY ]]; do
        if [[ $(state) != ABSENT ]]; then
            tpu delete "$TPU" --quiet || true
        fi
        if ! tpu create "$TPU" "${options[@]}"; then
            echo "No $TYPE to be had in $ZONE; trying again in $pause s." >&2
            sleep "$pause"
        fi
    done
}

# Copies the tracked files of this checkout to every host and installs them there.
install() {
    local archive
    archive=$(mktemp --suffix=.tar.gz)
    git -C "$root" ls-files -z | tar -C "$root" --null --files-from=- -czf "$archive"
    tpu scp "$archive" "$TPU:l2l_jax.tar.gz" --worker=all || return
    rm -f "$archive"
    on_all_hosts "rm -rf l2l_jax && mkdir l2l_jax && tar -xzf l2l_jax.tar.gz -C l2l_jax \
        && bash l2l_jax/launch/tpu_host.sh install $(printf %q "$SHARED")"
}

# The exit codes that the program had on the hosts, each on a line.
exit_codes() {
    on_all_hosts 'cat exit_code 2>/dev/null || echo unknown' 2>/dev/null || true
}

# shellcheck disable=SC2329  # called by the trap
stop() {
    trap '' INT TERM
    stopping=1
    echo "Stopping: all hosts save after the same step." >&2
    on_all_hosts 'bash l2l_jax/launch/tpu_host.sh stop' || true
}
trap stop INT TERM

# In the background, so that a signal is acted on while the program runs.
run() {
    on_all_hosts "bash l2l_jax/launch/tpu_host.sh run $(printf '%q ' "$@")" &
    local session=$! code=0
    wait "$session" || code=$?
    if [[ $stopping == 1 ]]; then # the signal interrupted the wait
        wait "$session" || code=$?
    fi
    return "$code"
}

for ((restart = 0; restart <= max_restarts; restart++)); do
    ensure_slice
    if install && run "$@"; then
        echo "Finished." >&2
        exit 0
    fi
    if [[ $stopping == 1 ]]; then
        exit 143
    fi
    codes=$(exit_codes)
    if grep -qxE '1|2' <<<"$codes"; then
        echo "Not started again: exit codes 1 and 2 are mistakes that a restart does not mend." >&2
        exit 1
    fi
    echo "Interrupted (exit codes: ${codes//$'\n'/, }); starting again from the last checkpoint." >&2
    sleep "$pause"
done
echo "Given up after $max_restarts restarts." >&2
exit 75
