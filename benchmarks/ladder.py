"""Are the samples as good as the reconstructions? Every sampler on a run of quality.py.

    python benchmarks/ladder.py --run OUT/run --train DIR --test DIR --out benchmarks/ladder.json

Samplers are fitted to the codes of the training films. Distances from the test films are reported
beside those of the training films' reconstructions, by the network that the loss used and by one
that it did not. The sampler is chosen on training films kept out of the fit (the VAE has seen
them), not on test films.
"""

import argparse
import json
import sys
from pathlib import Path

import vaekit
from vaekit import sample
from vaekit.judge import evaluation, networks
from vaekit.judge import rows as tables
from vaekit.judge.choice import choose_sampler
from vaekit.judge.distances import memorisation

from quality import load_folder, part  # isort: skip

METRICS = ("frechet excess", "precision", "coverage", "sharpness ratio")
DRAWS = 20  # per candidate, for the choice


def draw(model, codes, n: int, seed: int) -> dict:
    """{kind: n images} of samplers fitted to codes (mu, logvar)."""
    images = {}
    for kind in sample.SAMPLERS:
        z = sample.fit_sampler(*codes, kind, seed).sample(n, seed=seed)
        images[kind] = sample.decode_all(model, z)
    return images


def say_excess(rows: list[dict], chosen: str) -> None:
    """One line per judge: the chosen sampler beside the reconstructions."""
    excess = {(r["network"], r["subject"]): r["value"] for r in rows
              if r["metric"] == "frechet excess"}  # fmt: skip
    for network in dict.fromkeys(network for network, _ in excess):
        ratio = excess[network, chosen] / excess[network, "reconstruction"]
        print(f"{network}: {chosen}, chosen on held-out films, has {ratio:.2f} x the excess of"
              f" reconstructions")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--judges", nargs="*", default=["squeezenet", "vgg19"])
    parser.add_argument("--out", type=Path, help="write the rows here as JSON")
    given = parser.parse_args()
    run = vaekit.load_run(given.run)
    seed, model = run.cfg.seed, run.model
    train, test = (load_folder(folder, run.cfg) for folder in (given.train, given.test))
    shuffled = part(train, len(train))
    fit, held = shuffled.images[: -len(test)], shuffled.images[-len(test) :]
    choice = choose_sampler(model, fit, held, draws=DRAWS, seed=seed)
    chosen = choice.best
    print(tables.format_table(choice.rows))
    samples = draw(model, sample.encode_all(model, train), len(test), seed)
    rows = evaluation.evaluate(model, test, run.cfg, val=shuffled, samples=samples,
                            judges=given.judges)  # fmt: skip
    rows = [r for r in rows if r["metric"] in METRICS]
    print(tables.format_table(rows))
    say_excess(rows, chosen)
    trunk = networks.load_judges(["squeezenet"])[0]
    there, unseen = (networks.feature_vectors(s, trunk) for s in (train, test))
    copies = {name: memorisation(networks.feature_vectors(images, trunk), there, unseen)
              for name, images in samples.items()}  # fmt: skip
    for name, found in copies.items():
        print(f"{name}: memorises {found.memorises}, authentic {found.authentic:.2f}")
    if given.out:
        result = {
            "command": " ".join(["python", *sys.argv]), "chosen": chosen,
            "memorises": {name: bool(found.memorises) for name, found in copies.items()},
            "authentic": {k: round(float(m.authentic), 3) for k, m in copies.items()},
            "choice": choice.rows, "rows": rows,
        }  # fmt: skip
        given.out.write_text(json.dumps(result, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
