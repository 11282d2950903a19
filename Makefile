# Everything a newcomer runs. `make demo` needs Python and nothing else; each target sets up what it needs, once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
OUT    ?= runs/demo
SEED   ?= 0

.PHONY: help demo test lab notebooks export readme docs teaching hooks clean
help:            ## Show the targets
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:[^#]*## /\t/' | expand -t 14

# One thread: the model is small, and a second one waits for whatever else the machine does.
# It also makes the run repeatable to the bit.
demo: $(VENV)/.demo  ## Segment a scene with the weights that ship, then train the same model on the CPU, evaluate it, show where the pictures are
	$(BIN)/slot-attention data tetrominoes --n 1 --out $(OUT)-first/scene
	$(BIN)/slot-attention segment tetrominoes_small $(OUT)-first/scene/0000.png --n-init 8 --device cpu --out $(OUT)-first
	@echo "The first picture, from the weights that ship: $(OUT)-first/0000_slots.png"
	OMP_NUM_THREADS=1 $(BIN)/slot-attention train tetrominoes_small --device cpu --seed $(SEED) --out $(OUT) $(if $(wildcard $(OUT)/checkpoint.pt),--resume)
	$(BIN)/slot-attention evaluate $(OUT) --data tetrominoes --n 320 --device cpu --controls
	@echo "The picture: $(OUT)/slots.png"

test: $(VENV)/.dev   ## Check style, layers and the notebooks' form, run the notebooks, then the tests
	bash scripts/test.sh

lab: $(VENV)/.dev    ## Open the notebooks in JupyterLab (from a container: make lab LABFLAGS=--ip=0.0.0.0)
	JUPYTER_CONFIG_PATH=scripts/jupyter $(BIN)/jupyter lab --ServerApp.root_dir=. $(if $(filter 0,$(shell id -u)),--allow-root) $(LABFLAGS) nbs/index.ipynb

notebooks: $(VENV)/.dev  ## Execute every notebook and save its outputs
	$(BIN)/python scripts/execute_notebooks.py
	$(BIN)/nbdev_clean

export: $(VENV)/.dev ## Write the modules and the README from the notebooks, and the drawings
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python scripts/make_readme.py
	$(BIN)/python scripts/drawings.py

docs: $(VENV)/.dev   ## Build the documentation site into _docs/ and check its links (needs npm once, to fetch KaTeX)
	$(BIN)/python scripts/make_docs.py
	$(BIN)/python scripts/check_site.py

teaching: $(VENV)/.dev  ## Write the teachers' versions into _teaching/, those for Colab and Binder into _notebooks/
	$(BIN)/python scripts/blank_solutions.py
	$(BIN)/python scripts/install_cells.py

hooks: $(VENV)/.dev  ## Install the git hooks that keep notebooks clean and mergeable
	$(BIN)/nbdev_install_hooks

clean:           ## Remove what was built (runs and the environment stay)
	rm -rf build dist *.egg-info _proc _docs _teaching _notebooks nbs/katex .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.11 demo")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

$(VENV)/.demo: setup.py settings.ini constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) -e '.[train]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -e '.[dev]'
	@touch $@
