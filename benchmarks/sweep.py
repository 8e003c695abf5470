"""Many short runs, one value changed at a time, for the notebooks 07 to 09.

    python benchmarks/sweep.py clinic|sharp
    VAEKIT_DATA=ROOT python benchmarks/sweep.py beta|cifar|faces|films

Continues where lessons/results/NAME.json ends, so it can be stopped. Several may run side by side,
each on other cases (--only). Results do not depend on that; the seconds do.
"""

import argparse
import json
import tempfile

import torch
from filelock import FileLock
from PIL import Image

import vaekit
from vaekit.keep.run import fit
from vaekit.lessons import sweeps

from sweep_cases import SWEEPS  # isort: skip
from sweep_measures import measure  # isort: skip

CURVE = ("beta", "val_kl", "val_psnr", "val_loss", "kl_share", "train_recon", "train_grad_norm")


def train(cfg, data, select: str):
    """(model, history). select="recon": the weights of the epoch with the best reconstruction."""
    best = {"value": float("inf")}

    def keep(run):
        value = run.history[-1]["val_recon"]
        if value < best["value"]:
            weights = {k: v.clone() for k, v in run.model.state_dict().items()}
            best.update(value=value, weights=weights)

    with tempfile.TemporaryDirectory() as folder:
        run = fit(cfg, data, folder, resume="never", verbose=False, on_epoch_end=keep)
    if select == "recon":
        run.model.load_state_dict(best["weights"])
    return run.model, run.history


def one(sweep: sweeps.Sweep, case: str, seed: int, data) -> tuple[dict, torch.Tensor | None]:
    """(row, pictures) of one case; the row of a run that failed has the reason."""
    changes = dict(sweep.cases[case])
    cfg = sweep.config(case, seed)
    row = {"case": case, "seed": seed}
    try:
        model, history = train(cfg, data, changes.get("select", ""))
    except FloatingPointError as error:
        return row | {"broke_off": str(error)}, None
    numbers, pictures = measure(model, data, seed)
    last = history[-1]
    numbers |= {"beta_elbo": last["beta_elbo"], "val_loss": last["val_loss"],
                "grad_norm": max(h["train_grad_norm"] for h in history),
                "seconds": sum(h["seconds"] for h in history)}  # fmt: skip
    numbers["curve"] = [[h[name] for name in CURVE]
                        for h in history[:: max(1, len(history) // 25)]]  # fmt: skip
    return row | numbers, pictures


def load(cfg, judged: int | None) -> vaekit.Data:
    """The data of `cfg`, with at most `judged` images for validation and for testing."""
    data = vaekit.load_data(cfg, verbose=False)
    if judged is None:
        return data
    keep = [torch.arange(len(data.train))]
    for split in (data.val, data.test):
        keep.append(torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:judged])
    splits = list(zip((data.train, data.val, data.test), keep, strict=True))
    fewer = vaekit.Data.from_tensors(*(s.images[i] for s, i in splits),
                                     [s.labels[i] for s, i in splits], data.classes)  # fmt: skip
    fewer.source = data.source
    return fewer


def rounded(value):
    """Four digits: more would be noise."""
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def write(sweep: sweeps.Sweep, row: dict, pictures) -> None:
    """Add a row to the file; another process may have written to it meanwhile."""
    path = sweeps.RESULTS / f"{sweep.name}.json"
    with FileLock(path.with_suffix(".lock")):
        rows = json.loads(path.read_text())["rows"] if path.exists() else []
        rows = [r for r in rows if (r["case"], r["seed"]) != (row["case"], row["seed"])]
        rows.append({k: rounded(v) for k, v in row.items()})
        order = list(sweep.cases)
        rows.sort(key=lambda r: (order.index(r["case"]), r["seed"]))
        lines = ",\n".join("  " + json.dumps(r) for r in rows)
        head = json.dumps(
            {"name": sweep.name, "about": sweep.about, "cases": sweep.cases}, indent=1
        )
        path.write_text(f'{head[:-2]},\n "rows": [\n{lines}\n ]\n}}\n')
        pictured = row["case"] in sweep.about["pictured"]
        if row["seed"] == 0 and pictured and pictures is not None:
            paste(sweep, row["case"], pictures)


def paste(sweep: sweeps.Sweep, case: str, pictures: torch.Tensor) -> None:
    """Paste the case's line of pictures into the sheet; one line for each pictured case."""
    path, (n, channels, side, _) = sweeps.RESULTS / f"{sweep.name}.webp", pictures.shape
    pictured = sweep.about["pictured"]
    size = n * side, len(pictured) * side
    sheet = Image.new("L" if channels == 1 else "RGB", size)
    if path.exists():
        sheet.paste(Image.open(path).convert(sheet.mode).crop((0, 0, *size)))
    strip = (255 * torch.cat(list(pictures), dim=2)).round().byte().permute(1, 2, 0).squeeze(-1)
    sheet.paste(Image.fromarray(strip.numpy()), (0, pictured.index(case) * side))
    sheet.save(path, lossless=True, quality=100, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=SWEEPS)
    parser.add_argument("--only", nargs="*", help="cases; else all")
    parser.add_argument("--seeds", type=int, nargs="*", help="else those of the sweep")
    given = parser.parse_args()
    spec = SWEEPS[given.name]
    cases, five = spec["cases"], spec.get("five", ())
    seeds = given.seeds or range(5 if five else spec["seeds"])
    about = {
        "command": f"python benchmarks/sweep.py {given.name}", "preset": spec["preset"],
        "base": spec["base"], "seeds": spec["seeds"], "torch": torch.__version__, "curve": CURVE,
        "five": list(five), "pictured": spec.get("pictured", []),
    }  # fmt: skip
    sweep, data, key = sweeps.Sweep(given.name, about, cases, []), None, None
    path = sweeps.RESULTS / f"{given.name}.json"
    for seed in seeds:
        for case in given.only or cases:
            done = json.loads(path.read_text())["rows"] if path.exists() else []
            if any(r["case"] == case and r["seed"] == seed for r in done):
                continue
            if seed >= (5 if case in five else spec["seeds"]):
                continue
            cfg = sweep.config(case)  # the films and their split are those of seed 0
            if key != (key := (cfg.image_size, cfg.clahe_clip)):
                data = load(cfg, spec.get("judged"))
                about |= {"train": len(data.train), "test": len(data.test), "data": data.source}
            row, pictures = one(sweep, case, seed, data)
            if spec.get("brief"):
                row = {k: v for k, v in row.items() if not isinstance(v, list)}
            write(sweep, row, pictures)
            shown = {k: rounded(row.get(k)) for k in ("psnr", "sharpness", "kl", "verdict")}
            print(f"seed {seed}  {case:28} {shown}", flush=True)


if __name__ == "__main__":
    main()
