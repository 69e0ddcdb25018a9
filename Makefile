# `make` lists the targets. PYTHON chooses the interpreter (3.10 to 3.13) that .venv is made from.
PYTHON ?= python3
BIN := .venv/bin
RUFF := $(BIN)/ruff
# Python compiles what it imports, once. To compile every package takes longer.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
unexport PYTHONDONTWRITEBYTECODE

# The notebooks run in their own folder, so paths that are relative to this one become absolute. In the recipes and
# quoted, because make itself splits at spaces.
absolute = case "$$$(1)" in ""|/*|random|imagenet) ;; *) export $(1)="$$PWD/$$$(1)" ;; esac;
define settings
export COVID_XRAY_OUTPUT="$${COVID_XRAY_OUTPUT:-output}"; \
	$(call absolute,COVID_XRAY_OUTPUT) $(call absolute,COVID_XRAY_DATA) $(call absolute,VGG16_WEIGHTS)
endef

.PHONY: help setup data run binary multi lab sync lint test test-colab test-real bench chance clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*  ##' Makefile | sed -E 's/:.*  ## /\t/' | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: .venv/installed  ## make .venv and install requirements.txt into it
.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 10) <= v[:2] <= (3, 13) or sys.exit(f"TensorFlow needs Python 3.10 to 3.13, and this is {v[0]}.{v[1]}. Choose one: make PYTHON=python3.13")'
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt
	@touch $@

data: setup  ## get and check images and weights (phantoms if no X-ray is available)
	@$(BIN)/python data/prepare.py

# Every cell runs even where one fails, and what was computed is kept as notebook and page; then make fails.
define execute
	@$(settings) \
	name=Covid19_GradientCrescent_$(1); \
	$(BIN)/python -m nbconvert --log-level WARN --to notebook --execute --allow-errors --ExecutePreprocessor.timeout=-1 \
		--ExecutePreprocessor.kernel_name=python3 --ExecutePreprocessor.extra_arguments=--log-level=ERROR \
		--output-dir "$$COVID_XRAY_OUTPUT" notebooks/$$name.ipynb \
	&& $(BIN)/python -m nbconvert --log-level WARN --to html \
		--HTMLExporter.preprocessors=nbconvert.preprocessors.CoalesceStreamsPreprocessor \
		--TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_input_tags hide-input \
		"$$COVID_XRAY_OUTPUT/$$name.ipynb" \
	&& ! grep -h -A1 '"ename": ' "$$COVID_XRAY_OUTPUT/$$name.ipynb" \
	&& echo "Open $$COVID_XRAY_OUTPUT/$$name.html"
endef

run: data  ## everything: prepare, then execute both notebooks into output/
	$(call execute,Binary)
	$(call execute,Multi)

binary: data  ## prepare and execute the binary notebook
	$(call execute,Binary)

multi: data  ## prepare and execute the multiclass notebook
	$(call execute,Multi)

lab: data  ## open the notebooks in JupyterLab
	@$(settings) $(BIN)/python -m jupyter lab notebooks

sync: setup  ## pack the toolbox into both notebooks, and compute the READMEs' tables
	@$(BIN)/python notebooks/sync.py

.venv/tested: .venv/installed tests/requirements.txt
	$(PIP) -r tests/requirements.txt
	@touch $@

lint: .venv/tested  ## check the style of code and notebooks
	$(RUFF) check
	$(RUFF) format --check data notebooks/*.py tests
	$(RUFF) format --check --line-length 88 notebooks/*.ipynb
	$(BIN)/python notebooks/sync.py --check

test: lint  ## check style, run all tests, and run both notebooks on Colab's versions
	$(BIN)/python -m pytest tests -m "not real and not colab"
	$(BIN)/python -m pytest tests -m colab

test-colab: .venv/tested  ## run only the notebooks, alone in a folder, on Colab's versions
	$(BIN)/python -m pytest tests -m colab

test-real: .venv/tested  ## run both notebooks on the article's images, where ../shared has them
	$(BIN)/python -m pytest tests -m real

bench: .venv/tested  ## measure speed against the article's own code; writes output/bench.json
	@$(settings) $(BIN)/python tests/bench.py

chance: .venv/tested  ## measure how far chance moves the numbers; writes output/chance.json
	@$(settings) $(BIN)/python tests/chance.py

clean:  ## remove results, kept views, environments, and unfinished downloads; images and weights stay
	rm -rf output .venv .venv-colab data/public data/.[a-z0-9]* data/*/.[0-9]* notebooks/.[0-9]* notebooks/.ipynb_checkpoints
