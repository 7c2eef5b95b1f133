#!/usr/bin/env bash
# Times the steps of the published configs on one GPU, next to PyTorch's where there is a peer, in nine minutes.
#
#     OUT=results bash benchmarks/gpu_session.sh
#
# Writes $OUT/gpu_session.json: {measurement: what `python -m benchmarks` wrote, or null where it failed or took
# too long}, and $OUT/gpu_session.log. MAE: 32 + 32 images; VQ-GAN: the published 128 + 128, so that its job
# takes 563 times the step; diffusion: 12 + 12, one of the published 8 GPUs. SMALL=1 takes tiny models, for CPUs, and
# SLOWER=10 allows ten times as long.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out=${OUT:-.} python=${PYTHON:-python} rounds=${ROUNDS:-30}
mkdir -p "$out"
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch needs memory beside it
small=${SMALL:+:runlocal}

measure() { # seconds, name, arguments of benchmarks
    local limit=$(($1 * ${SLOWER:-1})) name=$2
    shift 2
    echo "== $name" >>"$out/gpu_session.log"
    timeout "$limit" "$python" -m benchmarks "$@" --rounds="$rounds" --output="$out/$name.json" \
        >>"$out/gpu_session.log" 2>&1 || echo "$name: exit code $?" | tee -a "$out/gpu_session.log"
}

batch() { # of the published size
    echo "--config.unlearn.batch_size=$([ -n "${SMALL:-}" ] && echo 4 || echo "$1")"
}

measure 90 step_mae step --config="configs/mae.py$small" "$(batch 32)" --layouts=1x1
measure 100 step_vqgan step --config="configs/vqgan.py$small" "$(batch 128)" --layouts=1x1
measure 100 step_diffusion step --config="configs/diffusion.py$small" "$(batch 12)" --layouts=1x1
measure 110 peer_mae peer --config="configs/mae.py$small" "$(batch 32)"
measure 130 peer_diffusion peer --config="configs/diffusion.py$small" "$(batch 12)"

"$python" - "$out" <<'END'
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
names = ("step_mae", "step_vqgan", "step_diffusion", "peer_mae", "peer_diffusion")
files = {name: out / f"{name}.json" for name in names}
found = {name: json.loads(file.read_text()) if file.exists() else None for name, file in files.items()}
(out / "gpu_session.json").write_text(json.dumps(found, indent=2) + "\n")
for file in files.values():
    file.unlink(missing_ok=True)
END
