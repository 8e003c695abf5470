"""Every preset trained on the data it was made for, one command per row:

    python benchmarks/own_data.py fashion_mnist --data DIR --minutes 10 --runs out/own_data

Trains in slices: after a stop, the same command continues. A finished row replaces the one of the
same name in benchmarks/own_data.json; `--table` prints the rows for README.md. The system is the
preset's `full` one, with fewer epochs if the minutes are too few; --set FIELD=VALUE changes more.
Nothing else should run meanwhile.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch

import vaekit
from vaekit import data as data_module
from vaekit import plots, sample
from vaekit.__main__ import parse_changes
from vaekit.config import Config, preset
from vaekit.data import Data
from vaekit.judge import evaluation
from vaekit.judge import rows as tables
from vaekit.keep.run import fit
from vaekit.lessons.sweeps import RESULTS, Sweep
from vaekit.losses import beta_elbo, mse_per_image

from quality import seconds_per_epoch  # isort: skip

HERE = Path(__file__).parent
SLICE = 4.0  # minutes of training between pauses for other work
NUM_FITTED = 10_000  # training images that the mixture is fitted to, at most
KEPT = ("psnr", "ssim", "lpips", "sharpness ratio", "frechet", "precision", "coverage")


def shortened(cfg: Config, data: Data, minutes: float, changes: dict) -> Config:
    """`cfg` with as many of its epochs as fit into the minutes; the phases keep their shares."""
    each = seconds_per_epoch(cfg, data)
    share = min(1.0, 60 * minutes / each / cfg.num_epochs)
    epochs = {
        name: round(share * getattr(cfg, name)) for name in ("epochs_phase1", "epochs_phase2")
    }
    print(f"{each:.1f} s an epoch: {share:.0%} of the preset's {cfg.num_epochs} epochs")
    return preset(cfg.preset, **(epochs | changes))


def train(cfg: Config, data: Data, runs: Path) -> vaekit.Run:
    """A finished run; time spent on an interrupted one is not lost."""
    while True:
        run = fit(cfg, data, runs, max_minutes=SLICE)
        if run.finished:
            return run


@torch.no_grad()
def score(run, data: Data) -> tuple[list[dict], dict]:
    """(rows of the evaluation, {subject: 8 images}) of reconstructions, prior and mixture."""
    model, n = run.model, min(len(data.test), tables.MAX_IMAGES)
    samples = {}
    for kind in ("prior", "gmm"):
        z = vaekit.sample_latents(model, n, kind, fit_on=data.train.images[:NUM_FITTED], seed=0)
        samples[kind] = sample.decode_all(model, z)
    rows = evaluation.evaluate(model, data.test, run.cfg, val=data.val, samples=samples,
                            judges=("squeezenet",))  # fmt: skip

    def measured(x):
        return {"mse": mse_per_image(model.reconstruct(x), x)}

    found = tables.collect(measured, data.test)["mse"]
    rows = [r for r in rows if r["metric"] in KEPT and r["subject"] != "real"]
    rows.insert(0, tables.mean_row("mse", "reconstruction", found))
    x = data_module.as_float(data.test.images[:8])
    return rows, {"real": x, "reconstructed": model.reconstruct(x).cpu(), **samples}


COLUMNS = ("preset", "images to train on / to judge by", "minutes", "epochs", "PSNR", "MSE", "SSIM",
           "LPIPS", "sharpness ratio",
           "Fréchet above the floor: reconstructions / prior / mixture", "floor (N)")  # fmt: skip
DIGITS = {"psnr": 2, "mse": 4, "ssim": 3, "lpips": 3, "sharpness ratio": 2}


def markdown(results: list[dict]) -> str:
    """The rows as README.md has them; a dash where there was no network to judge by."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for result in results:
        rows = {(r["metric"], r["subject"]): r for r in result["rows"]}
        own = {key: rows.get((key, "reconstruction")) for key in DIGITS}
        distances = [rows.get(("frechet", s)) for s in ("reconstruction", "prior", "gmm")]
        floor = next((f"{r['floor']:,.0f} ({r['n']:,})" for r in distances if r), "–")
        cells = [f"`{result['name']}`", f"{result['train']:,} / {result['test']:,}",
                 f"{result['minutes']:.1f}", f"{result['epochs']} of {result['of']}",
                 *(f"{r['value']:.{DIGITS[key]}f}" if r else "–" for key, r in own.items()),
                 " / ".join(f"{r['value'] - r['floor']:,.0f}" if r else "–" for r in distances),
                 floor]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def betas(rows: list[dict]) -> list[dict]:
    """Every system's beta in one unit, for notebook 08, and the source of its error."""
    table = []
    for row in rows:
        cfg = preset(row["preset"], profile="full")
        table.append({"preset": row["preset"], "beta": cfg.beta, "recon_weight": cfg.recon_weight,
                      "reductions": f"{cfg.recon_reduction}/{cfg.kl_reduction}",
                      "beta_elbo": row["beta_elbo"], "kl": row["kl"],
                      "error": f"measured, {row['epochs']} of {row['of']} epochs"})  # fmt: skip
    # two presets of 256 pixels were not trained to an end here: their error is another's
    clinic = Sweep.load("clinic").values("as it ended", "beta_elbo").mean()
    mse = next(m["value"] for r in rows if r["name"] == "celeba64" for m in r["rows"]
               if m["metric"] == "mse")  # fmt: skip
    faces, l1 = preset("celeba256", profile="full"), (2 * mse / math.pi) ** 0.5
    steep = beta_elbo(faces, faces.beta, l1, mse, 3 * 256 * 256, faces.latent_channels)
    for name, value, error in (
        ("medical256", 16 * float(clinic), "the clinic's at 64 px; 16 times the pixels"),
        ("celeba256", steep, "celeba64's MSE, taken as Gaussian; its beta moves by itself"),
    ):
        cfg = preset(name, profile="full")
        table.append({"preset": name, "beta": cfg.beta, "recon_weight": cfg.recon_weight,
                      "reductions": f"{cfg.recon_reduction}/{cfg.kl_reduction}",
                      "beta_elbo": round(value, 3), "kl": None, "error": error})  # fmt: skip
    return sorted(table, key=lambda row: row["beta_elbo"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", nargs="?")
    parser.add_argument("--data", default="", help="the data set's folder or file")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--name", help="of the row; else the preset's")
    parser.add_argument("--out", type=Path, default=HERE / "own_data.json")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--table", action="store_true", help="print the rows that are there")
    parser.add_argument("--betas", action="store_true", help="write results/betas.json")
    given = parser.parse_args()
    if given.betas:
        table = betas(json.loads(given.out.read_text()))
        (RESULTS / "betas.json").write_text(json.dumps(table, indent=1) + "\n")
        return
    if given.table:
        print(markdown(json.loads(given.out.read_text())))
        return
    if not (given.preset and given.minutes and given.runs):
        parser.error("a preset, --minutes and --runs are needed, or --table")
    name, folder = given.name or given.preset, given.runs / (given.name or given.preset)
    changes = {"profile": "full", "data_path": given.data, **parse_changes(given.set)}
    cfg = preset(given.preset, **changes)
    data = vaekit.load_data(cfg)
    if (folder / "config.json").exists():  # begun before: the speed is not measured again
        cfg = Config.load(folder / "config.json")
    else:
        cfg = shortened(cfg, data, given.minutes, changes)
        folder.mkdir(parents=True, exist_ok=True)
        cfg.save(folder / "config.json")
    run = train(cfg, data, folder)
    rows, pictures = score(run, data)
    plots.show_rows({k: v[:8] for k, v in pictures.items()}).savefig(folder / "grid.png", dpi=110)
    print(tables.format_table(rows))
    seconds = sum(epoch["seconds"] for epoch in run.history)
    hidden = {given.data: "DIR", str(given.runs): "OUT"}
    command = " ".join(["python", *(hidden.get(a, a) if a else a for a in sys.argv)])
    noted = preset(given.preset, profile="full")
    result = {
        "name": name, "preset": given.preset, "command": command, "seed": cfg.seed,
        "train": len(data.train), "val": len(data.val), "test": len(data.test),
        "size": cfg.image_size, "minutes": round(seconds / 60, 1), "epochs": len(run.history),
        "of": noted.num_epochs, "images_per_second": round(
            len(run.history) * len(data.train) / seconds),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "precision": run.info["precision"], "features": run.info["features"],
        "beta_elbo": round(run.history[-1]["beta_elbo"], 4),
        "kl": round(run.history[-1]["val_kl"], 1), "torch": torch.__version__,
        "changed": {k: new for k, (_, new) in noted.differences(cfg).items() if k != "data_path"},
        "rows": rows,
    }  # fmt: skip
    others = json.loads(given.out.read_text()) if given.out.exists() else []
    table = [r for r in others if r["name"] != name] + [result]
    given.out.write_text(json.dumps(sorted(table, key=lambda r: r["name"]), indent=1) + "\n")


if __name__ == "__main__":
    main()
