#!/usr/bin/env bash
# Measurements on a CUDA GPU: 12 minutes of a large one, without network or pip.
#
#   benchmarks/on_gpu.sh [part ...]   precisions t4 throughput convs sharp recipe; default: all
#   benchmarks/on_gpu.sh --pack       before, with network and VAEKIT_DATA: peers as wheels, real
#                                     films and the weights, at most 64 MiB with this repository,
#                                     into out/pack; take it along
#   DEVICE=cpu STEPS=1 benchmarks/on_gpu.sh     tiny sizes, to check that every part runs
#
# The most important part comes first, and each stores its results when it ends: eight files at
# most. OUT: their folder (out/gpu). MINUTES: of `sharp` (4) and of `recipe` (2).
# PYTHON: an interpreter with torch, torchvision, cv2, accelerate and tensorboard.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} OUT=${OUT:-out/gpu} STEPS=${STEPS:-50} DEVICE=${DEVICE:-cuda}
pack=out/pack
read -r long short <<< "${MINUTES:-4 2}"

if [ "${1:-}" = --pack ]; then  # FOR: the Python of that machine
  rm -rf $pack
  "$PYTHON" -m pip download -q -d $pack --no-deps --only-binary=:all: --implementation cp \
    --python-version "${FOR:-3.12}" --platform manylinux_2_28_x86_64 monai diffusers || exit
  PYTHONPATH=$PWD "$PYTHON" benchmarks/gpu.py pack --out $pack || exit
  du -sh $pack; exit
fi

scratch=$(mktemp -d); trap 'rm -rf "$scratch"' EXIT
for wheel in $pack/*.whl; do [ -e "$wheel" ] && "$PYTHON" -m zipfile -e "$wheel" "$scratch/site"; done
export PYTHONPATH="$PWD:$scratch/site${PYTHONPATH:+:$PYTHONPATH}"
export VAEKIT_CACHE=$scratch/cache VAEKIT_PROGRESS=lines MPLBACKEND=Agg PYTHONUNBUFFERED=1
export TORCH_HOME=$scratch VAEKIT_DATA=$PWD/data/chest_xray_phantom
mkdir -p "$OUT"

run() { "$PYTHON" "benchmarks/$@"; }
gpu() { run gpu.py "$@" --steps "$STEPS" --out "$OUT" --pack $pack/films.npz "${tiny[@]}"; }
if [ "$DEVICE" = cpu ]; then
  export CUDA_VISIBLE_DEVICES=
  tiny=(--tiny) sizes=(--sizes 32 --batch 4 --steps "$STEPS" --rounds 1 --workers 1)
else
  tiny=() sizes=(--sizes 128 --steps "$STEPS" --rounds 3 --workers 8)
fi
peers=(plain monai "monai bf16" diffusers "diffusers bf16")
run gpu.py weights --out "$scratch/weights" || exit

failed=()
for part in ${@:-precisions t4 throughput convs sharp recipe}; do
  echo "== $part, after $SECONDS s"
  export VAEKIT_WEIGHTS=$scratch/weights  # random: time and memory do not depend on them
  case $part in
    throughput)
      run throughput.py --features vgg16 --engines "${peers[@]}" "${sizes[@]}" \
        --out "$OUT/throughput.json" ;;
    sharp) VAEKIT_WEIGHTS=$PWD/$pack gpu sharp --minutes "$long" ;;
    recipe) VAEKIT_WEIGHTS=$PWD/$pack gpu recipe --minutes "$short" ;;
    *) gpu "$part" ;;
  esac || failed+=("$part")
done
echo "results in $OUT after $SECONDS s; failed: ${failed[*]:-none}"
[ ${#failed[@]} -eq 0 ]
