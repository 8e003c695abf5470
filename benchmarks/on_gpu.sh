#!/usr/bin/env bash
# What is to be known about speed on a CUDA GPU, in one command, without network or pip.
#
#   benchmarks/on_gpu.sh [part ...]   throughput profile convs variants memory recipe; default: all
#   benchmarks/on_gpu.sh --pack       with network: what such a machine lacks, into out/wheels
#   DEVICE=cpu STEPS=1 benchmarks/on_gpu.sh     tiny sizes, to see that every part runs to its end
#
# OUT: folder of the JSON files (out/gpu). PYTHON: an interpreter with torch, torchvision, cv2,
# accelerate and tensorboard; what lies in out/wheels is unpacked and put before its own packages.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} OUT=${OUT:-out/gpu} STEPS=${STEPS:-50} DEVICE=${DEVICE:-cuda}

if [ "${1:-}" = --pack ]; then  # FOR: the Python of that machine
  fetch() { "$PYTHON" -m pip download -q -d out/wheels --only-binary=:all: --implementation cp \
    --python-version "${FOR:-3.12}" --platform manylinux2014_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux_2_28_x86_64 "$@"; }
  rm -rf out/wheels
  fetch --no-deps lpips monai diffusers pythae einops && fetch pydantic || exit
  du -sh out/wheels; exit
fi

scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT
for wheel in out/wheels/*.whl; do [ -e "$wheel" ] && "$PYTHON" -m zipfile -e "$wheel" "$scratch/site"; done
export PYTHONPATH="$PWD:$scratch/site${PYTHONPATH:+:$PYTHONPATH}"
export VAEKIT_WEIGHTS=$scratch/weights VAEKIT_CACHE=$scratch/cache VAEKIT_PROGRESS=lines
export TORCH_HOME=$scratch  # no other weights either
films=data/chest_xray_phantom
export VAEKIT_DATA=$PWD/$films
mkdir -p "$OUT"

run() { "$PYTHON" "benchmarks/$@"; }
gpu() { run gpu.py "$@" --steps "$STEPS" --out "$OUT" "${small[@]}"; }
if [ "$DEVICE" = cpu ]; then
  export CUDA_VISIBLE_DEVICES=
  small=(--size 32 --batch 4 --memory-batch 2 --count 24 --epochs 1 1 --backend aot_eager)
  sizes=(--sizes 32 --batch 4 --steps "$STEPS" --rounds 1 --workers 1)
  profiled=(--size 32 --batch 4 --steps "$STEPS" --workers 1)
else
  small=() sizes=(--sizes 128 --steps "$STEPS" --workers 8)
  profiled=(--steps "$STEPS" --workers 8 --ops 20)
fi
run gpu.py weights --out "$VAEKIT_WEIGHTS" || exit

failed=()
for part in ${@:-throughput profile convs variants memory recipe}; do
  echo "== $part"
  case $part in
    throughput) run throughput.py --features vgg16 "${sizes[@]}" --out "$OUT/throughput.json" ;;
    profile) run profile_step.py --features vgg16 "${profiled[@]}" --out "$OUT/profile.json" ;;
    *) gpu "$part" ;;
  esac || failed+=("$part")
done
echo "results in $OUT; failed: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
