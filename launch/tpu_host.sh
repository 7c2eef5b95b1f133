#!/usr/bin/env bash
# What launch/tpu_pod.sh does on each host of a TPU slice; not to be called by hand.
#
#     tpu_host.sh install HOST:/EXPORT   mount the shared storage, make the virtual environment
#     tpu_host.sh run ARGUMENTS          run the program; its exit code is left in ~/exit_code
#     tpu_host.sh stop                   ask the program to save and end, and wait until it has

set -euo pipefail
cd "$HOME"

readonly venv=$HOME/venv pid_file=$HOME/run.pid

case ${1:-} in
    install)
        if ! mountpoint -q /mnt/l2l; then
            sudo apt-get -qq -o DPkg::Lock::Timeout=300 update
            sudo apt-get -qq -o DPkg::Lock::Timeout=300 install -y nfs-common
            sudo mkdir -p /mnt/l2l
            sudo mount -t nfs "$2" /mnt/l2l
        fi
        if [[ ! -x $venv/bin/python ]]; then
            # The image's own Python is older than 3.11.
            curl -LsSf https://astral.sh/uv/install.sh | sh
            "$HOME/.local/bin/uv" venv --python 3.12 "$venv"
        fi
        "$HOME/.local/bin/uv" pip install --quiet --python "$venv/bin/python" -e l2l_jax 'jax[tpu]'
        ;;
    run)
        shift
        bash "$0" stop # what an interrupted connection left behind still holds the TPU
        rm -f exit_code
        cd l2l_jax
        code=0
        "$venv/bin/python" -m l2l_jax.main --distributed "$@" &
        echo $! >"$pid_file"
        wait $! || code=$?
        echo "$code" >"$HOME/exit_code"
        rm -f "$pid_file"
        exit "$code"
        ;;
    stop)
        if [[ -f $pid_file ]] && pid=$(<"$pid_file") && kill -TERM "$pid" 2>/dev/null; then
            for ((waited = 0; waited < 300; waited++)); do
                kill -0 "$pid" 2>/dev/null || break
                sleep 1
            done
            kill -KILL "$pid" 2>/dev/null || true
        fi
        rm -f "$pid_file"
        ;;
    *)
        echo "usage: $0 install HOST:/EXPORT | run ARGUMENTS | stop" >&2
        exit 2
        ;;
esac
