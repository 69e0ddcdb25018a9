# `make` lists the targets. PYTHON chooses the interpreter (3.10 to 3.13) that .venv is made from.
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOKS := notebooks/Covid19_GradientCrescent
COALESCE := nbconvert.preprocessors.CoalesceStreamsPreprocessor

# The notebooks run in their own folder: paths that are given relative to this one become absolute.
export COVID_XRAY_OUTPUT := $(abspath $(or $(COVID_XRAY_OUTPUT),output))
ifdef COVID_XRAY_DATA
export COVID_XRAY_DATA := $(abspath $(COVID_XRAY_DATA))
endif
ifneq ($(wildcard $(VGG16_WEIGHTS)),)
export VGG16_WEIGHTS := $(abspath $(VGG16_WEIGHTS))
endif

.PHONY: help setup data run binary multi lab lint test test-colab test-real bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*  ##' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /\t/' | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: .venv/installed  ## make .venv and install requirements.txt into it
.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 10) <= v[:2] <= (3, 13) or sys.exit(f"Python {v[0]}.{v[1]} will not do: TensorFlow needs 3.10 to 3.13. Say which: make PYTHON=python3.13")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

data: setup  ## get and check images and weights (phantoms where no X-ray can be had)
	$(BIN)/python data/prepare.py

# Every cell runs even where one fails, and what was computed is kept as notebook and page; then make fails.
define execute
	@mkdir -p $(COVID_XRAY_OUTPUT)
	$(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --allow-errors --ExecutePreprocessor.timeout=-1 \
		--ExecutePreprocessor.kernel_name=python3 --output-dir $(COVID_XRAY_OUTPUT) $(NOTEBOOKS)_$(1).ipynb
	$(BIN)/jupyter nbconvert --log-level WARN --to html --HTMLExporter.preprocessors=$(COALESCE) \
		$(COVID_XRAY_OUTPUT)/Covid19_GradientCrescent_$(1).ipynb
	@! grep -h -A1 '"ename": ' $(COVID_XRAY_OUTPUT)/Covid19_GradientCrescent_$(1).ipynb
	@echo "Open $(COVID_XRAY_OUTPUT)/Covid19_GradientCrescent_$(1).html"
endef

run: data  ## everything: prepare, then execute both notebooks into output/
	$(call execute,Binary)
	$(call execute,Multi)

binary: data  ## prepare and execute the binary notebook
	$(call execute,Binary)

multi: data  ## prepare and execute the multiclass notebook
	$(call execute,Multi)

lab: data  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

.venv/tested: .venv/installed tests/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

lint: .venv/tested  ## check the style of code and notebooks
	$(BIN)/ruff check --line-length 120 --select E,F,W,I,B,UP --ignore E501,B905 .

test: lint  ## everything that CI runs: style, tests, both notebooks on Colab's versions
	$(BIN)/python -m pytest tests
	bash tests/colab.sh

test-colab:  ## only the notebooks, alone in a folder, on Colab's versions
	bash tests/colab.sh

test-real: .venv/tested  ## the binary notebook on the article's images, where ../shared has them
	bash tests/real.sh

bench: .venv/tested  ## measure speed against the article's own code; writes output/bench.json
	$(BIN)/python tests/bench.py

clean:  ## remove results, environments and unfinished downloads; images and weights stay
	rm -rf output .venv .venv-colab data/.[a-z]* data/public data/phantoms notebooks/.ipynb_checkpoints
