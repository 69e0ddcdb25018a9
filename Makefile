# `make` lists the targets. PYTHON chooses the interpreter (3.10 to 3.13) that .venv is made from.
PYTHON ?= python3
BIN := .venv/bin
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PYTHONPATH PYTHONHOME MPLBACKEND

# The notebooks run in their own folder, so paths that are relative to this one become absolute. And where no X-ray can
# be had, prepare.py draws phantoms and leaves their folder in .venv/images.
absolute = case "$$$(1)" in ""|/*|imagenet) ;; "~/"*) export $(1)="$$HOME/$${$(1)\#*/}" ;; *) export $(1)="$$PWD/$$$(1)" ;; esac;
settings = export COVID_XRAY_OUTPUT="$${COVID_XRAY_OUTPUT:-output}"; $(call absolute,COVID_XRAY_OUTPUT) \
	$(call absolute,COVID_XRAY_DATA) $(call absolute,VGG16_WEIGHTS) \
	if [ -s .venv/images ]; then export COVID_XRAY_DATA="$$(cat .venv/images)"; fi;

# Every cell runs even where one fails, and what was computed is kept as notebook and page; at the end, make fails.
LESSONS = $(addprefix Covid19_GradientCrescent_,$(1))
NBCONVERT = ../$(BIN)/python -m nbconvert --config page/nbconvert.py
execute = @$(settings) cd notebooks; failed=; for name in $(LESSONS); do page="$$COVID_XRAY_OUTPUT/$$name"; \
	$(NBCONVERT) --to notebook --execute --output-dir "$$COVID_XRAY_OUTPUT" $$name.ipynb && \
	$(NBCONVERT) --log-level ERROR --to html "$$page.ipynb" || exit 1; \
	if grep -h -A1 '"ename": ' "$$page.ipynb"; then failed="$$failed $$page.html"; fi; done; \
	if [ "$$failed" ]; then echo "A cell failed. What was computed is in$$failed"; exit 1; fi; \
	for name in $(LESSONS); do echo "Open $$COVID_XRAY_OUTPUT/$$name.html"; done

.PHONY: help setup data run binary multi lab results sync lint test test-real bench chance clean
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*  ##' Makefile | sed -E 's/:.*  ## /\t/' | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'
setup: .venv/installed  ## make .venv and install requirements.txt into it
.venv/installed: requirements.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "TensorFlow needs Python 3.10 to 3.13. Choose one: make setup PYTHON=python3.13"; exit 1; }
	"$(PYTHON)" -m venv --clear .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@
data: setup  ## get and check images and weights (phantoms if no X-ray is available)
	@rm -f .venv/images; $(settings) $(BIN)/python data/prepare.py --print-folder .venv/images
run: data  ## everything: prepare, then execute both notebooks into output/
	$(call execute,Binary Multi)
binary: data  ## prepare and execute the binary notebook
	$(call execute,Binary)
multi: data  ## prepare and execute the multiclass notebook
	$(call execute,Multi)
lab: data  ## open the notebooks in JupyterLab
	@$(settings) $(BIN)/python -m jupyter lab notebooks
results: setup  ## copy what a run on the article's images left in output/ to notebooks/
	@$(settings) $(BIN)/python tests/tools/results.py
sync: setup  ## pack the toolbox into both notebooks, and compute the READMEs' tables
	@$(BIN)/python tests/tools/pack.py && $(BIN)/python tests/tools/tables.py
.venv/tested: .venv/installed tests/requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -r tests/requirements.txt
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
test-real: .venv/tested  ## run both notebooks on the article's images, where they are at hand
	$(BIN)/python -m pytest tests -m real
bench: .venv/tested  ## measure speed; writes output/bench.json
	@$(settings) $(BIN)/python tests/measure/bench.py
chance: .venv/tested  ## measure how far chance moves the numbers; writes output/chance.json
	@$(settings) $(BIN)/python tests/measure/chance.py
clean:  ## remove results, kept features, environments, and unfinished downloads; images and weights stay
	rm -rf output .venv .venv-colab data/unzip_* data/*.part data/.[a-z0-9]* data/*/.[0-9]* notebooks/.ipynb_checkpoints
