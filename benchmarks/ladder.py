"""Are the samples as good as the reconstructions? Every sampler on a run of quality.py.

    python benchmarks/ladder.py --run OUT/run --train DIR --test DIR --out benchmarks/ladder.json

Samplers are fitted to the codes of the training films. Distances are from the test films, beside
those of the training films' reconstructions, judged by the network that the loss listened to and
by one that it did not. The choice is made on training films kept out of the fit, not on these.
"""

import argparse
import json
import sys
from pathlib import Path

import vaekit
from vaekit import metrics, sample
from vaekit.distances import memorisation

from quality import load_folder, part  # isort: skip

METRICS = ("frechet excess", "precision", "coverage", "sharpness ratio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--judges", nargs="*", default=["squeezenet", "vgg19"])
    parser.add_argument("--out", type=Path, help="write the rows here as JSON")
    given = parser.parse_args()
    run = vaekit.load_run(given.run)
    train, test = (load_folder(folder, run.cfg) for folder in (given.train, given.test))
    shuffled = part(train, len(train))
    fit, held = shuffled.images[: -len(test)], shuffled.images[-len(test) :]
    choice = sample.choose_sampler(run.model, fit, held, draws=10, seed=run.cfg.seed)
    codes = sample.encode_all(run.model, train)
    samples = {}
    for kind in sample.SAMPLERS:
        z = sample.fit_sampler(*codes, kind, run.cfg.seed).sample(len(test), seed=run.cfg.seed)
        samples[kind] = sample.decode_batched(run.model, z)
    rows = metrics.evaluate(run.model, test, run.cfg, val=shuffled, samples=samples,
                            judges=given.judges)  # fmt: skip
    rows = [r for r in rows if r["metric"] in METRICS]
    judge = metrics.load_judge()
    trunk = judge.trunk if judge is not None else None
    there, unseen = (metrics.feature_vectors(s, trunk) for s in (train, test))
    copies = {kind: memorisation(metrics.feature_vectors(images, trunk), there, unseen)
              for kind, images in samples.items()}  # fmt: skip
    print(metrics.format_table(rows))
    for name in {r["network"] for r in rows if r["metric"] == "frechet excess"}:
        excess = {r["subject"]: r["value"] for r in rows
                  if r["metric"] == "frechet excess" and r["network"] == name}  # fmt: skip
        ratio = excess[choice.best] / excess["reconstruction"]
        print(f"{name}: {choice.best}, chosen on held-out films, has {ratio:.2f} x the excess of"
              f" reconstructions")  # fmt: skip
    for kind, found in copies.items():
        print(f"{kind}: memorises {found.memorises}, authentic {found.authentic:.2f}")
    if given.out:
        result = {
            "command": " ".join(["python", *sys.argv]), "chosen": choice.best,
            "memorises": {kind: bool(found.memorises) for kind, found in copies.items()},
            "authentic": {k: round(float(m.authentic), 3) for k, m in copies.items()},
            "choice": choice.rows, "rows": rows,
        }  # fmt: skip
        given.out.write_text(json.dumps(result, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
