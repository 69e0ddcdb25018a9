# `make` lists the targets. PYTHON chooses the interpreter (3.10 to 3.13) that .venv is made from.
PYTHON ?= python3
BIN := .venv/bin

# Your shell may say where packages come from. It may not put them elsewhere, or let modules from elsewhere come first.
KEPT := PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_NO_INDEX PIP_TRUSTED_HOST PIP_CERT PIP_CLIENT_CERT PIP_PROXY \
	PIP_KEYRING_PROVIDER PIP_CONFIG_FILE PIP_CACHE_DIR PIP_NO_CACHE_DIR PIP_DEFAULT_TIMEOUT PIP_TIMEOUT
unexport $(filter-out $(KEPT),$(filter PIP_%,$(.VARIABLES)))
unexport PYTHONPATH PYTHONHOME PYTHONOPTIMIZE PYTHONWARNINGS PYTHONDONTWRITEBYTECODE JUPYTER_PATH JUPYTER_PREFER_ENV_PATH
export KERAS_BACKEND := tensorflow

# Python compiles what it imports, once; to compile every package takes longer. The other options restore
# pip's defaults, whatever a pip.conf says. If a command fails, explain.py says why in one line.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --retries 3 \
	--no-user --target "" --prefix "$$PWD/.venv" --root /
OR_EXPLAIN := 2> .venv/log || $(BIN)/python tests/tools/explain.py .venv/log

# The notebooks run in their own folder, so paths that are relative to this one become absolute. In the recipes and
# quoted, because make itself splits at spaces.
absolute = case "$$$(1)" in ""|/*|imagenet) ;; "~/"*) export $(1)="$$HOME/$${$(1)\#*/}" ;; \
	*) export $(1)="$$PWD/$$$(1)" ;; esac;
define settings
export COVID_XRAY_OUTPUT="$${COVID_XRAY_OUTPUT:-output}"; \
	$(call absolute,COVID_XRAY_OUTPUT) $(call absolute,COVID_XRAY_DATA) $(call absolute,VGG16_WEIGHTS)
endef

.PHONY: help setup data run binary multi lab results sync lint test test-colab test-real bench chance clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*  ##' Makefile | sed -E 's/:.*  ## /\t/' | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'

# .venv is made anew if its Python does not start, if you ask for another one, and if it was never finished.
version = $(shell "$(1)" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
HAS := $(call version,$(BIN)/python)
ASKED := $(if $(filter file,$(origin PYTHON)),$(HAS),$(or $(call version,$(PYTHON)),unknown))
ifeq ($(HAS),)
WORN_OUT := its Python does not start
else ifneq ($(HAS),$(ASKED))
WORN_OUT := it has Python $(HAS), and $(PYTHON) is $(ASKED)
else ifeq ($(wildcard .venv/installed),)
WORN_OUT := it is not finished
endif
ifdef WORN_OUT
.PHONY: .venv/installed
endif

setup: .venv/installed  ## make .venv and install requirements.txt into it
.venv/installed: requirements.txt
ifdef WORN_OUT
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
		echo "Problem: TensorFlow needs Python 3.10 to 3.13, and $(PYTHON) answers:" \
			"$$("$(PYTHON)" --version 2>&1 | head -n 1). Choose another one: make setup PYTHON=python3.13"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "Problem: $(PYTHON) comes without venv. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@if [ -e .venv ]; then echo "Making .venv anew: $(WORN_OUT)."; fi
	"$(PYTHON)" -m venv --clear .venv
endif
	$(PIP) -r requirements.txt $(OR_EXPLAIN)
	@$(BIN)/python -c 'import tensorflow, keras, cv2, gdown, nbconvert' $(OR_EXPLAIN)
	@touch $@

# Where no X-ray can be had, prepare.py draws phantoms and leaves their folder in .venv/images.
data: setup  ## get and check images and weights (phantoms if no X-ray is available)
	@$(BIN)/python data/prepare.py --print-folder .venv/images
prepared := images=$$(cat .venv/images); if [ -n "$$images" ]; then export COVID_XRAY_DATA="$$images"; fi;

# Every cell runs even where one fails, and what was computed is kept as notebook and page; then make fails.
# TensorFlow's start-up messages go to the terminal, not to the page.
define execute
	@$(prepared) $(settings) \
	name=Covid19_GradientCrescent_$(1); \
	$(BIN)/python -m nbconvert --log-level WARN --to notebook --execute --allow-errors --ExecutePreprocessor.timeout=-1 \
		--ExecutePreprocessor.kernel_name=python3 --ExecutePreprocessor.extra_arguments=--log-level=ERROR \
		--ExecutePreprocessor.extra_arguments=--IPKernelApp.capture_fd_output=False \
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
	@$(prepared) $(settings) $(BIN)/python -m jupyter lab notebooks

results: setup  ## copy the results and figures of a run on the article's images from output/ to notebooks/
	@$(settings) $(BIN)/python tests/tools/results.py

sync: setup  ## pack the toolbox into both notebooks, and compute the READMEs' tables
	@$(BIN)/python tests/tools/pack.py
	@$(BIN)/python tests/tools/tables.py

.venv/tested: .venv/installed tests/requirements.txt
	$(PIP) -r tests/requirements.txt $(OR_EXPLAIN)
	@touch $@

lint: .venv/tested  ## check the style of code and notebooks, the toolbox cells, and the tables
	$(BIN)/ruff check
	$(BIN)/ruff format --check data notebooks/*.py tests
	$(BIN)/ruff format --check --preview --line-length 80 notebooks/*.ipynb
	$(BIN)/python tests/tools/pack.py --check
	$(BIN)/python tests/tools/tables.py --check

test: lint  ## check style, run all tests that need no X-ray, and run both notebooks on Colab's versions
	$(BIN)/python -m pytest tests -m "not real and not colab"
	$(BIN)/python -m pytest tests -m colab

test-colab: .venv/tested  ## run only the notebooks, alone in a folder, on Colab's versions
	$(BIN)/python -m pytest tests -m colab

test-real: .venv/tested  ## run both notebooks on the article's images, where they are at hand
	$(BIN)/python -m pytest tests -m real

bench: .venv/tested  ## measure speed; writes output/bench.json
	@$(settings) $(BIN)/python tests/measure/bench.py

chance: .venv/tested  ## measure how far chance moves the numbers; writes output/chance.json
	@$(settings) $(BIN)/python tests/measure/chance.py

clean:  ## remove results, kept features, environments, and unfinished downloads; images and weights stay
	rm -rf output .venv .venv-colab data/unpacked_* data/*.part data/.[a-z0-9]* data/*/.[0-9]* notebooks/.ipynb_checkpoints
