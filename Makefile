# make run        install, execute notebooks 00-06 on the bundled films, write an HTML report
# make test       install, lint, unit tests, every notebook in the smoke profile
# make lint       ruff only
# make torture    kills, full disks, fuzzing, 2,000 random trees of folders (seed 0), the notebooks
#                 on 3 to 44 and on 100,000 images, and an hour of training (MINUTES=60)
# make notebooks  execute the notebooks and store them with their outputs
# make data       redraw the sample of the bundled films in data/
# make stamp REPO=owner/name    write the repository's address into the notebooks and their badges
# make bundle     every notebook as one file, vae_chest_xray.ipynb, folders for `kaggle kernels push`;
#                 IMAGES=folder: also vae_images.ipynb, which trains on your own
# make editions   a student edition without solutions, a teacher edition with them
# make report RUN=runs/...      one run as HTML and PDF
# make rehearse   play Kaggle and Colab here (Linux, root, Python 3.11 to 3.13, 32 GB), run it all

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
OUT    ?= out

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test lint torture notebooks stamp bundle editions report rehearse data clean

# reinstalls only when the requirements have changed
$(STAMP): requirements.txt requirements-dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements-dev.txt
	$(BIN)/python -m pip install -q --no-deps -e .
	touch $@

run: $(STAMP)
	VAEKIT_PROFILE=$${VAEKIT_PROFILE:-quick} $(BIN)/python notebooks/execute.py --out $(OUT)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# runs of the tests go to a separate folder, so that no older run is loaded; notebooks are compared
# with their stored output on the bundled films, whatever VAEKIT_DATA names
test: lint
	MPLBACKEND=Agg $(BIN)/python -m pytest tests -n auto --dist loadscope --durations=15
	rm -rf $(OUT)/test-runs
	OMP_NUM_THREADS=1 VAEKIT_DATA= VAEKIT_PROFILE=smoke VAEKIT_PROGRESS=lines VAEKIT_RUNS=$(abspath $(OUT))/test-runs \
	  $(BIN)/python -m pytest -n auto --dist loadscope --durations=5 \
	  --nbval-lax --nbval-current-env --nbval-cell-timeout=300 notebooks

# the long trials; writes their results
torture: $(STAMP)
	$(BIN)/python tests/torture/run.py --minutes $${MINUTES:-60} --store benchmarks/torture.json

notebooks: $(STAMP)
	VAEKIT_PROFILE=quick $(BIN)/python notebooks/execute.py --out $(OUT) --store

stamp: $(STAMP)
	$(BIN)/python publish/stamp.py $(REPO)

bundle: $(STAMP)
	$(BIN)/python publish/bundle.py --out dist $(if $(KAGGLE_USER),--user $(KAGGLE_USER)) \
	  $(if $(IMAGES),--images "$(IMAGES)")

editions: $(STAMP)
	$(BIN)/python publish/editions.py --out dist

report: $(STAMP)
	$(BIN)/python publish/report.py $(RUN) --out dist/report

rehearse: $(STAMP)
	$(BIN)/python publish/rehearse.py

data: $(STAMP)
	$(BIN)/python -m vaekit.files.phantom data/chest_xray_phantom

clean:
	rm -rf $(OUT) dist
