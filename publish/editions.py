"""`make editions`: a student edition and a teacher edition of every notebook.

    python publish/editions.py [--out dist]

DIR/student/   no outputs, no solutions; a hint at every stub, cells for answers; runs as it is
DIR/teacher/   solutions filled in and open, minutes per section (with those of the stored run),
               a marking rubric

Both come from the notebooks: the solution is the <details> cell tagged `solution`, the stub the
cell before it, tagged `exercise`, whose metadata holds the hint. Each is one file (see bundle.py).
"""

import argparse
import re
from pathlib import Path

import bundle
import nbformat
import package
import stamp
from nbformat.v4 import new_markdown_cell

DETAILS = re.compile(r"<details>.*?</details>\s*", re.S)
LISTED = re.compile(r"^(\d+)\. (.+?)(?=^\d+\. |\Z)", re.M | re.S)
READS, READS_CODE, LOOKS, EXERCISE = 150, 10, 2, 10  # words, lines a minute; minutes a figure, each
POINTS = {  # by the kind of exercise
    "fill in": (
        (2, "the function returns the expected value"),
        (1, "it uses its arguments only: no number of this run is typed in"),
        (1, "a sentence says why it is right; other questions of the exercise are answered"),
    ),
    "predict": (
        (1, "a prediction is written down, right or wrong"),
        (1, "the run: its figure or its numbers are kept"),
        (2, "the explanation uses them, and says what the prediction got right or wrong"),
    ),
    "derive": (
        (1, "it starts at a definition or a formula of the notebook"),
        (2, "every step says what it uses, and the result is right"),
        (1, "a sentence says what the result means here"),
    ),
    "find": (
        (
            2,
            "each mistake asked for is named (1 if one is missing), and what it does to the result",
        ),
        (1, "a formula, a figure or a printed line of the notebook shows it"),
        (1, "the answer says how to do it right"),
    ),
}
ANSWER = {
    "fill in": "*why the function is right, and what else is asked:* ...",
    "predict": "*prediction:* ... *run:* ... *explanation:* ...",
    "derive": "*derivation:* ... *what it means:* ...",
    "find": "*each mistake:* ... *what shows it:* ... *better:* ...",
}
KINDS = {  # by an exercise's first words; the others are predicted
    "Derive": "derive",
    "By hand": "derive",
    "Find the mistake": "find",
    "Fill in": "fill in",
}
ANSWERS = """\
### Your answers

Hand in this file with its outputs. Predict before you run. If an exercise changes a value, run the
cells again, copy what they print or draw to here, then set the value back. {points} points each.

{answers}"""
FOUND = re.compile(r"finished run found: \S+, (\d+) epochs")
TRAINED = re.compile(r"^epoch +\d+/(\d+) ", re.M)


def tagged(notebook: nbformat.NotebookNode, tag: str) -> nbformat.NotebookNode:
    (cell,) = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
    return cell


def exercises(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """(number, text) of every exercise."""
    (text,) = [
        c.source.split("## Exercises")[1] for c in notebook.cells if "## Exercises" in c.source
    ]
    return [(number, " ".join(words.split())) for number, words in LISTED.findall(text)]


def kinds(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """{number of an exercise: its kind, a key of POINTS}."""
    return {
        number: KINDS.get(re.match(r"\*\*(.+?)\.?\*\*", text)[1], "predict")
        for number, text in exercises(notebook)
    }


def student(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without outputs and solutions; with the hint, and a cell for answers."""
    made = bundle.blank(notebook)
    stub, solution = tagged(made, "exercise"), tagged(made, "solution")
    solution.source = DETAILS.sub("", solution.source).strip()
    (points,) = {sum(points for points, _ in rows) for rows in POINTS.values()}
    lines = "\n".join(f"{number}. {ANSWER[kind]}" for number, kind in kinds(notebook).items())
    answers = ANSWERS.format(points=points, answers=lines)
    hint = f"<details><summary>Hint</summary>\n\n{stub.metadata['hint']}\n\n</details>"
    where = made.cells.index(stub)
    made.cells.insert(where, new_markdown_cell(hint, id="hint"))
    made.cells.insert(where + 2, new_markdown_cell(answers, id="answers"))
    solution.metadata.tags = []
    return made


def teacher(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """The stub filled in, minutes under every heading, and the rubric at the end."""
    made = bundle.blank(notebook)
    stub, solution = tagged(made, "exercise"), tagged(made, "solution")
    stub.source = filled(stub.source, solution.source)
    solution.source = solution.source.replace("<details>", "<details open>")
    for cell, heading, minutes, seconds in sections(notebook):
        where = made.cells[cell]
        lines = where.source.split("\n")
        ran = f", {seconds:.0f} s of them computing" if seconds >= 1 else ""
        under = f"\n*{minutes} minute{'s' * (minutes > 1)}{ran}*"  # a heading is what links lead to
        lines.insert(lines.index(heading) + 1, under)
        where.source = "\n".join(lines)
    made.cells.append(new_markdown_cell(rubric(notebook, name), id="rubric"))
    return made


def filled(stub: str, solution: str) -> str:
    """The stub's cell, with its function replaced by the solution's."""
    (code,) = re.findall(r"```python\n(.*?)\n```", solution, re.S)
    function = re.compile(r"^def .+?(?=\n\n\n)", re.S | re.M)
    if re.match(r"def \w+\(.*?\):", code)[0] not in stub:
        raise ValueError(f"the solution is of another function than the stub:\n{code}")
    return function.sub(lambda _: code, stub, count=1)


def sections(notebook: nbformat.NotebookNode) -> list[tuple[int, str, int, float]]:
    """(cell, heading, minutes, seconds) of every ## heading.

    Seconds: the time of its cells in the stored run (0 where that was not recorded). Minutes also
    include reading, code, figures and exercises at the rates above.
    """
    found, costs, ran = [], [], []
    for i, cell in enumerate(notebook.cells):
        for part in re.split(r"^(?=## )", cell.source, flags=re.M):
            if cell.cell_type == "markdown" and part.startswith("## "):
                found.append((i, part.splitlines()[0]))
                costs.append(0.0)
                ran.append(0.0)
            if not costs:
                continue
            if cell.cell_type == "code":
                ran[-1] += cell.metadata.get("seconds", 0.0)
                costs[-1] += len(cell.source.splitlines()) / READS_CODE
                figures = sum("image/png" in o.get("data", {}) for o in cell.outputs)
                costs[-1] += LOOKS * figures
            else:
                costs[-1] += len(DETAILS.sub("", part).split()) / READS
                costs[-1] += EXERCISE * len(LISTED.findall(part)) * ("## Exercises" in part)
    return [
        (*place, max(1, round(cost + seconds / 60)), seconds)
        for place, cost, seconds in zip(found, costs, ran, strict=True)
    ]


def rubric(notebook: nbformat.NotebookNode, name: str) -> str:
    """The marking rubric with points, as Markdown."""
    lines = ["## For marking", "", "| exercise | points | for |", "|---|---|---|"]
    total = 0
    for number, kind in kinds(notebook).items():
        for points, what in POINTS[kind]:
            lines.append(f"| {number} | {points} | {what} |")
            total += points
    minutes = sum(minutes for *_, minutes, _ in sections(notebook))
    ran = sum(cell.metadata.get("seconds", 0.0) for cell in notebook.cells) / 60
    machine = next((o.text.strip() for o in stamp.first_code(notebook).outputs), "")
    measured = f" Of these the stored run computed {ran:.1f} ({machine})." if ran else ""
    if found := found_finished(notebook):
        measured += f" Not counted: {found} that it found finished, and that others wait for."
    lines += [
        f"| | **{total}** | |",
        "",
        f"{name}: {minutes} minutes in all, reckoned at {READS} words and {READS_CODE} lines"
        f" of code a minute, {LOOKS} minutes a figure, {EXERCISE} an exercise; where an"
        f" exercise trains, its training comes on top.{measured} What to expect of the"
        " exercises stands beside the solution; on other images the numbers differ.",
    ]
    return "\n".join(lines)


def found_finished(notebook: nbformat.NotebookNode) -> str:
    """How many runs the stored notebook loaded instead of training them, in words; "" for none."""
    text = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    found = sum(epochs not in TRAINED.findall(text) for epochs in FOUND.findall(text))
    return f"{found} training{'s' * (found > 1)}" if found else ""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("dist"))
    args = parser.parse_args(arguments)
    for path in package.notebooks():
        notebook = nbformat.read(path, as_version=4)
        for edition, made in (
            ("student", student(notebook)),
            ("teacher", teacher(notebook, path.stem)),
        ):
            bundle.save(bundle.bundle(made), args.out / edition / path.name)
    print(f"{len(package.notebooks())} notebooks in {args.out}/student and {args.out}/teacher")


if __name__ == "__main__":
    main()
