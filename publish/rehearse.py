"""`make rehearse`: play Kaggle and Colab on this machine, and run everything there.

    python publish/rehearse.py [WORLD ...] [--only 04 05] [--venv kaggle=DIR]

Worlds, each with the packages of worlds/*.txt in its own Python, internet off, the data read-only:

kaggle-batch        3.12; the bundles under the old mounts, notebook N+1 with the output of N
kaggle-interactive  3.12; the plain notebooks under the new mounts, the repository as a data set
colab               3.13; bundles in /content, the films in kagglehub's cache, ipywidgets 7
one-file            3.12; vae_chest_xray.ipynb in an empty folder, twice: the second run resumes
oldest              3.11; the lower bounds of requirements.txt, torch 2.4, ipywidgets 7, cv2 4
newest              3.13; the newest versions that requirements.txt allows
teacher             3.12; the teacher edition, stubs filled: every solution returns what it should

Needs Linux, root and `unshare` (for the sandbox), Python 3.11 to 3.13, and 8 GB of disk for each
of them. The profile is smoke: minutes, not hours.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import bundle
import editions
import nbformat
import onefile
import package

OUT = package.ROOT / "out" / "rehearse"
FILMS = package.ROOT / "data" / "chest_xray_phantom"
SLUG = bundle.KERMANY.split("/")[1]
PYTHONS = {"kaggle": "3.12", "colab": "3.13", "oldest": "3.11", "newest": "3.13"}
# Run inside a new namespace: the world's folders in place, its inputs read-only, no network.
SANDBOX = """\
set -e
for place in kaggle content; do
  if [ -d "$WORLD/$place" ]; then mount --bind "$WORLD/$place" /$place; fi
done
if [ -d /kaggle/input ]; then
  mount --bind /kaggle/input /kaggle/input; mount -o remount,ro,bind /kaggle/input
fi
mount --bind "$EMPTY" "$CHECKOUT"
cd "$CWD"
exec "$@"
"""


def python_of(kind: str, given: dict[str, Path]) -> Path:
    """A Python with that world's packages, without vaekit; installed if there is none."""
    folder = given.get(kind, OUT / "venvs" / kind)
    if not (folder / ".installed").exists() and kind not in given:
        version = PYTHONS[kind]
        # pyenv's own first: its shim in PATH exists for every version, and may then fail
        found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        found.append(shutil.which(f"python{version}"))
        python = next((p for p in found if p), None)
        if not python:
            raise SystemExit(f"rehearsing {kind} needs Python {version}")
        print(f"installing the packages of {kind} (once, some minutes and 8 GB)", flush=True)
        subprocess.run([python, "-m", "venv", folder], check=True)
        wanted = package.ROOT / "publish" / "worlds" / f"{kind}.txt"
        pip = [folder / "bin/python", "-m", "pip", "install", "-q", "--no-cache-dir", "-r", wanted]
        subprocess.run(pip, check=True)
        (folder / ".installed").touch()
    return folder / "bin" / "python"


def kermany(folder: Path) -> None:
    """The data set as Kaggle mounts it: with the second copy inside, and what macOS leaves."""
    shutil.copytree(FILMS, folder / "chest_xray")
    shutil.copytree(FILMS, folder / "chest_xray" / "chest_xray")
    stray = folder / "chest_xray" / "__MACOSX" / "chest_xray" / "._train"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"\0")


def play(python: Path, world: Path, cwd: str, notebooks: list[Path], **environment) -> str:
    """Execute notebooks (files of the world) in its sandbox; everything they printed."""
    for folder in ("home", "outputs", "empty", "tools"):
        (world / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(package.ROOT / "publish" / "play.py", world / "tools")
    made = [Path("/", place) for place in ("kaggle", "content") if (world / place).is_dir()]
    made = [place for place in made if not place.exists()]
    for place in made:
        place.mkdir()
    keep = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "OMP_NUM_THREADS")}
    keep |= {
        "WORLD": str(world),
        "CWD": cwd,
        "EMPTY": str(world / "empty"),
        "CHECKOUT": str(package.ROOT / "vaekit"),
        "HOME": str(world / "home"),
        "VAEKIT_PROFILE": "smoke",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    } | environment
    command = [
        "unshare",
        "--mount",
        "--net",
        "--fork",
        "--kill-child",
        "bash",
        "-c",
        SANDBOX,
        "sandbox",
        python,
        world / "tools" / "play.py",
        world / "outputs",
        *notebooks,
    ]
    try:
        if subprocess.run(command, env=keep).returncode:
            raise SystemExit(f"as far as it came: {world / 'outputs'}")
    finally:
        for place in made:
            place.rmdir()
    return "".join((world / "outputs" / f"{path.stem}.txt").read_text() for path in notebooks)


def expect(text: str, *patterns: str) -> None:
    for pattern in patterns:
        if not re.search(pattern, text):
            raise SystemExit(f"expected {pattern!r} in what was printed:\n{text[:3000]}")


def fresh(name: str) -> Path:
    world = OUT / name
    shutil.rmtree(world, ignore_errors=True)
    world.mkdir(parents=True)
    return world


def bundles(world: Path, only: tuple) -> list[Path]:
    bundle.main(["--out", str(world / "dist")])
    return [
        path for path in sorted((world / "dist").glob("[0-9]*.ipynb")) if path.name.startswith(only)
    ]


def kaggle_batch(pythons: dict, only: tuple) -> None:
    world = fresh("kaggle-batch")
    files, outputs = bundles(world, only), world / "kaggle" / "input"
    kermany(outputs / SLUG)
    for path in files:
        working = world / "kaggle" / "working"
        working.mkdir()
        text = play(
            pythons["kaggle"], world, "/kaggle/working", [path], KAGGLE_KERNEL_RUN_TYPE="Batch"
        )
        expect(
            text,
            r"vaekit [\d.]+ · kaggle · Python 3\.12",
            "no LPIPS: lpips is missing",
            f"data: kaggle input, /kaggle/input/{SLUG}/chest_xray",
        )
        if path.name.startswith("04"):
            expect(text, r"epoch +1/3 .*PSNR")
        if path.name.startswith(("05", "06")) and len(files) == len(package.notebooks()):
            expect(text, r"copied \S+ from the attached", "finished run found")
        working.rename(outputs / f"vaekit-{path.stem.replace('_', '-')}")


def kaggle_interactive(pythons: dict, only: tuple) -> None:
    world = fresh("kaggle-interactive")
    inputs = world / "kaggle" / "input" / "datasets"
    kermany(inputs / bundle.KERMANY)
    for folder in ("vaekit", "data", "notebooks"):
        shutil.copytree(package.ROOT / folder, inputs / "someone" / "vaekit" / folder)
    (world / "kaggle" / "working").mkdir()
    paths = [
        path
        for path in sorted((inputs / "someone/vaekit/notebooks").glob("[0-9]*.ipynb"))
        if path.name.startswith(only)
    ]
    paths = [Path("/") / path.relative_to(world) for path in paths]
    text = play(
        pythons["kaggle"], world, "/kaggle/working", paths, KAGGLE_KERNEL_RUN_TYPE="Interactive"
    )
    expect(text, "· kaggle ·", f"/kaggle/input/datasets/{bundle.KERMANY}/chest_xray")


def colab(pythons: dict, only: tuple) -> None:
    world = fresh("colab")
    (world / "content").mkdir()
    hub = world / "home" / ".cache" / "kagglehub" / "datasets" / bundle.KERMANY
    kermany(hub / "versions" / "2")
    (hub / "2.complete").touch()
    files = [*bundles(world, only), world / "dist" / f"{onefile.NAME}.ipynb"]
    text = play(pythons["colab"], world, "/content", files, COLAB_RELEASE_TAG="release-colab")
    expect(
        text,
        r"· colab · Python 3\.13",
        "no FID: torchmetrics is missing",
        "data: kagglehub cache",
    )


def at_home(kind: str, pythons: dict, only: tuple) -> str:
    """Every notebook on a machine that is neither Kaggle's nor Colab's; returns their output."""
    world = fresh(kind)
    (world / "content").mkdir()
    files = [*bundles(world, only), world / "dist" / f"{onefile.NAME}.ipynb"]
    text = play(pythons[kind], world, "/content", files)
    expect(text, "data: sample of the bundled phantoms")
    return text


def oldest(pythons: dict, only: tuple) -> None:
    expect(at_home("oldest", pythons, only), r"· local · Python 3\.11.* · torch 2\.4\.")


def newest(pythons: dict, only: tuple) -> None:
    expect(at_home("newest", pythons, only), r"· local · Python 3\.13")


def one_file(pythons: dict, only: tuple) -> None:
    world = fresh("one-file")
    bundle.main(["--out", str(world / "dist")])
    (world / "content").mkdir()
    file = [world / "dist" / f"{onefile.NAME}.ipynb"]
    expect(
        play(pythons["kaggle"], world, "/content", file),
        "data: sample of the bundled phantoms",
        "3 of 3 epochs are done",
    )
    expect(play(pythons["kaggle"], world, "/content", file), "going on after epoch 3 of 3")


def teacher(pythons: dict, only: tuple) -> None:
    world = fresh("teacher")
    files = []
    for path in (path for path in package.notebooks() if path.name.startswith(only)):
        notebook = editions.teacher(nbformat.read(path, as_version=4), path.stem)
        files.append(world / path.name)
        nbformat.write(bundle.bundle(notebook), files[-1])
    (world / "content").mkdir()
    for path in files:
        text = play(pythons["kaggle"], world, "/content", [path])
        pairs = re.findall(r"yours +(.+?)(?: / |\n)expected (.+)", text)
        if not pairs or any(yours != expected for yours, expected in pairs):
            raise SystemExit(f"{path.name}: the solution does not give what is expected: {pairs}")


WORLDS = {
    "kaggle-batch": kaggle_batch,
    "kaggle-interactive": kaggle_interactive,
    "colab": colab,
    "oldest": oldest,
    "newest": newest,
    "one-file": one_file,
    "teacher": teacher,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("worlds", nargs="*", help=f"of {', '.join(WORLDS)}; default: all")
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of notebook names")
    parser.add_argument("--venv", nargs="*", default=[], metavar="KIND=DIR")
    args = parser.parse_args()
    if not sys.platform.startswith("linux") or os.geteuid() or not shutil.which("unshare"):
        raise SystemExit("a rehearsal needs Linux, root and unshare")
    given = {kind: Path(folder) for kind, folder in (text.split("=") for text in args.venv)}
    pythons = {}
    for name in args.worlds or WORLDS:
        kind = name if name in PYTHONS else "kaggle"
        pythons[kind] = pythons.get(kind) or python_of(kind, given)
        print(f"{name}:", flush=True)
        WORLDS[name](pythons, tuple(args.only))
    print("all of it runs")


if __name__ == "__main__":
    main()
