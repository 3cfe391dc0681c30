# `make help` lists the targets. A machine with Python and make is enough.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# files side by side, one thread each: most tests wait for processes that start
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 15
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo article test test-all readme docs pdf compile lab bench clean

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 16

setup: $(STAMP)  ## .venv with everything installed (uv is fetched into it first)

$(STAMP): settings.ini pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[dev]'
	touch $@

demo: setup      ## phantom exams as DICOM, a density model trained on them, its evaluation
	$(BIN)/mammography demo --outdir outputs/demo

article: setup   ## executed pages of a phantom study, three seeds, in outputs/article
	$(BIN)/mammography article --outdir outputs/article

test: setup      ## every notebook's tests, then pytest
	$(BIN)/python tools/notebooks.py
	$(PYTEST) -m "not slow and not gpu"

test-all: setup  ## the same with what takes longer
	$(BIN)/python tools/notebooks.py --slow
	$(PYTEST) -m "not gpu"

bench: setup     ## speed as ratios in one run
	for f in tests/benchmarks/bench_*.py; do $(BIN)/python $$f || exit 1; done

readme: setup    ## README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

docs: setup      ## the site: Quarto where it is installed, plain HTML of the same pages where not
	$(BIN)/python tools/docs.py

pdf: setup       ## the pages of the article as PDF; needs Quarto
	@$(BIN)/python tools/docs.py --pdf

compile:         ## the PDF of Article/, which report-pack has laid down; needs latexmk
	$(MAKE) -C Article compile

lab: setup       ## JupyterLab, with the index open
	$(BIN)/jupyter lab --ServerApp.root_dir=. nbs/index.ipynb

clean:           ## remove what can be made again; outputs/ stays
	rm -rf build _docs _proc dist *.egg-info .pytest_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
