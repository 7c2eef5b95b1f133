#!/usr/bin/env bash
# Times the steps of the published configs on one GPU, next to PyTorch's where there is a peer, in nine minutes.
#
#     OUT=results bash benchmarks/gpu_session.sh
#
# Writes $OUT/gpu_session.json after every measurement: {measurement: what `python -m benchmarks` wrote, or null
# where it failed, took too long or has not begun}, and $OUT/gpu_session.log. Peers come first; later measurements
# find compiled steps in $OUT/compiled. MAE: 32 + 32 images; VQ-GAN: the published 128 + 128, so that its job takes
# 563 times the step; diffusion: 12 + 12, one of the published 8 GPUs. SMALL=1 takes tiny models, for CPUs, and
# SLOWER=10 allows ten times as long.
set -uo pipefail
python=${PYTHON:-python} rounds=${ROUNDS:-30} slower=${SLOWER:-1}
mkdir -p "${OUT:-.}" && out=$(cd "${OUT:-.}" && pwd) && cd "$(dirname "$0")/.." || exit
rm -f "$out"/{step,peer}_*.json
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch needs memory beside it
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$out/compiled}
small=${SMALL:+:runlocal}
deadline=$((520 * slower)) # seconds; what has not ended 10 seconds after its limit is killed

measure() { # seconds, name, arguments of benchmarks
    local limit=$(($1 * slower)) left=$((deadline - SECONDS)) name=$2
    shift 2
    echo "== $name, $left seconds left" >>"$out/gpu_session.log"
    ((left < 20)) && return
    timeout --kill-after=10 $((left < limit ? left : limit)) \
        "$python" -m benchmarks "$@" --rounds="$rounds" --output="$out/$name.json" \
        >>"$out/gpu_session.log" 2>&1 || echo "$name: exit code $?" | tee -a "$out/gpu_session.log"
    collect
}

collect() { # all that is measured so far
    "$python" - "$out" <<'END_OF_PYTHON'
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
names = ("peer_mae", "peer_diffusion", "step_vqgan", "step_mae", "step_diffusion")
files = {name: out / f"{name}.json" for name in names}
found = {name: json.loads(file.read_text()) if file.exists() else None for name, file in files.items()}
(out / "gpu_session.json").write_text(json.dumps(found, indent=2) + "\n")
END_OF_PYTHON
}

batch() { # of the published size
    echo "--config.unlearn.batch_size=$([ -n "${SMALL:-}" ] && echo 4 || echo "$1")"
}

collect
measure 140 peer_mae peer --config="configs/mae.py$small" "$(batch 32)"
measure 150 peer_diffusion peer --config="configs/diffusion.py$small" "$(batch 12)"
measure 130 step_vqgan step --config="configs/vqgan.py$small" "$(batch 128)" --layouts=1x1
measure 100 step_mae step --config="configs/mae.py$small" "$(batch 32)" --layouts=1x1
measure 100 step_diffusion step --config="configs/diffusion.py$small" "$(batch 12)" --layouts=1x1
rm -f "$out"/{step,peer}_*.json
