"""The effect of each choice: quality.py once as it is, and once with each single change.

    python benchmarks/one_change.py --train DIR --test DIR --out benchmarks/one_change.json

Rows that the file already holds are not measured again, so it can be stopped and started. Nothing
else should run on the machine meanwhile. Prints the table of README.md.
"""

import json
import sys
import tempfile
from pathlib import Path

from quality import folders_parser, measure

ROWS = {  # name -> the change; every row is trained the same number of minutes
    "as it is": {},
    "float32": {"precision": "fp32"},
    "NCHW": {"channels_last": False},
    "learning rate 5e-4": {"lr_phase1": 5e-4, "lr_phase2": 5e-4},
    "constant learning rate": {"lr_schedule_phase2": "constant"},
    "no averaged weights": {"ema": 0.0},
    "1x1 convolutions as shortcuts": {"shortcut": "conv"},
    "calibrated scale": {"calibrated": True},
    "no trunk": {"perceptual_weight": 0.0},
    "VGG-19 as trunk": {"features": "vgg19"},
    "batch 8": {"batch_size": 8},
    "batch 32": {"batch_size": 32},
    "no rescaling of latents": {"rescale_latents": False},
    "one phase": {"epochs_phase1": 0},
}


def table(rows: list[dict]) -> str:
    head = ("| change | images/s | PSNR | SSIM | LPIPS | sharpness | Fréchet, best sampler |\n"
            "|---|---|---|---|---|---|---|")  # fmt: skip
    lines = [
        f"| {r['name']} | {r['images_per_second']:.0f} | {r['psnr']:.2f} | {r['ssim']:.3f}"
        f" | {r['lpips']:.3f} | {r['sharpness_ratio']:.2f}"
        f" | {r['frechet'][r['best_sampler']]:.0f} ({r['best_sampler']}) |"
        for r in rows
    ]
    return "\n".join([head, *lines])


def main() -> None:
    parser = folders_parser(__doc__.split("\n")[0], minutes=3.0)
    parser.add_argument("--only", nargs="*", choices=ROWS, default=list(ROWS), metavar="ROW")
    given = parser.parse_args()
    rows = json.loads(given.out.read_text()) if given.out.exists() else []
    command = " ".join(["python", *sys.argv])
    for name, changes in ROWS.items():
        if name not in given.only or name in [r["name"] for r in rows]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            result = measure(given.train, given.test, given.size, given.minutes, Path(folder),
                             command, **changes)  # fmt: skip
        config = result.pop("config")
        keep = ("epochs_phase1", "epochs_phase2", "batch_size")
        rows.append({"name": name, **result, **{k: config[k] for k in keep}})
        given.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
