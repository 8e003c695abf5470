"""`make report RUN=runs/...`: one run as HTML and PDF, to hand in.

    python publish/report.py RUN [--out dist/report]

Figures, numbers, config and versions of a finished or unfinished run. If the run's data are on this
machine (the same hash), the model is evaluated and films, reconstructions and samples are shown. If
not, the report says so and shows the content of the run folder. matplotlib writes the PDF.
"""

import argparse
import base64
import html
import io
import json
import platform
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.backends.backend_pdf import PdfPages  # noqa: E402

import vaekit  # noqa: E402
from vaekit import plots, sample  # noqa: E402
from vaekit.judge.figures import plot_rows  # noqa: E402
from vaekit.judge.rows import format_table  # noqa: E402
from vaekit.lessons import curves  # noqa: E402

A4, LINES, COLUMNS = (8.27, 11.69), 72, 96


def figures_and_numbers(run) -> tuple[dict, dict]:
    """({title: figure}, {title: text}) of the report."""
    figures = {"History": curves.plot_history(run.history)}
    for file in sorted((run.path / "samples").glob("epoch_*.png"))[-1:]:
        figures[f"Films, reconstructions, prior samples ({file.stem})"] = picture(file)
    last = {name: value for name, value in run.history[-1].items() if value is not None}
    texts = {"Last epoch": table(last)}
    try:
        data = vaekit.load_data(run.cfg, verbose=False)
        found = data.hash
    except (OSError, ValueError) as error:
        found = str(error).splitlines()[0]
    if found != run.info["data"]["hash"]:
        texts["Evaluation"] = f"none: the run's data are not here ({found})"
        return figures, texts
    n, seed = len(data.test), run.cfg.seed
    mu, logvar = sample.encode_all(run.model, data.train)
    drawn = {
        kind: sample.fit_sampler(mu, logvar, kind, seed).sample(n, seed=seed)
        for kind in ("prior", "gaussian", "gmm")
    }
    samples = {kind: sample.decode_all(run.model, z) for kind, z in drawn.items()}
    rebuilt = sample.decode_all(run.model, sample.encode_all(run.model, data.test)[0])
    rows = {"film": data.test.images, "reconstruction": rebuilt} | samples
    figures["Test films, reconstructions, new films"] = plots.show_rows(rows, columns=7)
    measured = vaekit.evaluate(run.model, data.test, run.cfg, val=data.train, samples=samples)
    figures["Distances and sharpness"] = plot_rows(measured)
    texts["Evaluation"] = format_table(measured)
    texts["Data"] = data.summary()
    return figures, texts


def picture(file: Path):
    image = plt.imread(file)
    figure = plt.figure(figsize=(8, 8 * image.shape[0] / image.shape[1]))
    figure.add_axes((0, 0, 1, 1)).imshow(image, cmap="gray")
    figure.axes[0].set_axis_off()
    plt.close(figure)
    return figure


def table(values: dict) -> str:
    width = max(map(len, values))
    return "\n".join(f"{name:{width}}  {_short(value)}" for name, value in values.items())


def _short(value) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def write_html(title: str, figures: dict, texts: dict, path: Path) -> None:
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for name, figure in figures.items():
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=110)
        source = base64.b64encode(png.getvalue()).decode()
        image = f'<img alt="" src="data:image/png;base64,{source}">'
        parts.append(f"<h2>{html.escape(name)}</h2>{image}")
    parts += [f"<h2>{html.escape(k)}</h2><pre>{html.escape(v)}</pre>" for k, v in texts.items()]
    style = "body{font:16px sans-serif;max-width:60em;margin:2em auto}img{max-width:100%}"
    style += "pre{font-size:12px;overflow-x:auto}"
    path.write_text(
        f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{style}</style>\n" + "\n".join(parts) + "\n"
    )


def write_pdf(title: str, figures: dict, texts: dict, path: Path) -> None:
    """One page per figure, then the texts in a fixed-width font, smaller where lines are long."""
    with PdfPages(path) as pdf:
        for figure in figures.values():
            pdf.savefig(figure, bbox_inches="tight", pad_inches=0.4)
        for name, text in texts.items():
            lines = text.splitlines()
            for start in range(0, len(lines), LINES):
                part = lines[start : start + LINES]
                size = min(8.0, 8.0 * COLUMNS / max(map(len, part)))
                page = plt.figure(figsize=A4)
                page.text(0.07, 0.95, f"{title}: {name}", fontsize=12)
                page.text(0.07, 0.92, "\n".join(part), fontsize=size, family="monospace", va="top")
                pdf.savefig(page)
                plt.close(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("dist/report"))
    args = parser.parse_args()
    run = vaekit.load_run(args.run)
    figures, texts = figures_and_numbers(run)
    texts["Config"] = table(run.cfg.to_dict())
    texts["Run"] = json.dumps(run.info, indent=2)
    texts["Report made with"] = (
        f"vaekit {vaekit.__version__}, Python {platform.python_version()},"
        f" matplotlib {matplotlib.__version__}"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    title = f"{run.path.name}, {'finished' if run.finished else 'unfinished'}"
    write_html(title, figures, texts, args.out / f"{run.path.name}.html")
    write_pdf(title, figures, texts, args.out / f"{run.path.name}.pdf")
    print(f"{len(figures)} figures, {len(texts)} texts: {args.out}/{run.path.name}.html and .pdf")


if __name__ == "__main__":
    main()
