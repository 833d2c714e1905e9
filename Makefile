# Every task, one line each; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false
# Pip compiles nothing; what is imported is compiled once, and kept for the
# hundreds of processes that follow.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := book
.PHONY: book test bench tangle sync format lint serve links screenshot clean help

.venv/done: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	  "bertbook needs Python 3.11 or later, not %d.%d; run make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --no-compile -r requirements.txt
	$(BIN)/pip install -q --no-deps -e .
	touch $@

book: .venv/done ## check, execute and render the book to _build/html (default)
	$(BIN)/python -m bertbook.weave

test: book ## build the book and run the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

bench: .venv/done ## time the model and a training step beside transformers
	$(BIN)/python -m bertbook.benchmark
	$(BIN)/python -m bertbook.side_by_side

tangle: .venv/done ## write bertbook/ from the chapters
	$(BIN)/python -m bertbook.tangle

sync: .venv/done ## fold edits of bertbook/ back into the chapters too
	$(BIN)/python -m bertbook.tangle --sync

format: .venv/done ## format and sort imports in bertbook/, fold back, and the tests
	$(BIN)/python -m bertbook.tangle --sync
	$(BIN)/ruff check -q --select I --fix bertbook tests benchmarks scripts
	$(BIN)/ruff format -q bertbook tests benchmarks scripts
	$(BIN)/python -m bertbook.tangle --sync

lint: .venv/done ## check the package, its format and its chapters
	$(BIN)/python -m bertbook.tangle --check
	$(BIN)/ruff check bertbook tests benchmarks scripts
	$(BIN)/ruff format --check bertbook tests benchmarks scripts

serve: .venv/done ## watch: a saved chapter is tangled and rendered again
	$(BIN)/python -m bertbook.weave --serve

links: book ## try every link that leaves the site
	$(BIN)/jupyter-book build . --builder linkcheck

screenshot: book ## take the README's picture of a page
	$(BIN)/python scripts/screenshot.py

clean: ## delete what was built (the environment stays)
	rm -rf _build .executed .pytest_cache .ruff_cache .hypothesis

help: ## list the tasks
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12
