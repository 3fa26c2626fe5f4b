# Two commands do everything on a fresh machine: `make demo` and `make test`
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
export MPLBACKEND ?= Agg

.PHONY: demo test slow docs nbs dist oldest clean

demo: $(VENV)/.installed
	$(BIN)/python -m vision_tasks.demo

# in two processes, each with one thread; the tests of a file stay together
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadscope

# everything that wants real data or minutes: set VISION_TASKS_DATA and VISION_TASKS_WEIGHTS first
slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

# the sdist, a wheel built from it, and the wheel in an environment of its own that has only what it asks for
dist: $(VENV)/.installed
	rm -rf dist build
	$(BIN)/python -m build
	$(PYTHON) -m venv --clear $(VENV)-dist
	$(VENV)-dist/bin/python -m pip install -q dist/*.whl
	$(VENV)-dist/bin/python -I tests/smoke.py
	rm -rf $(VENV)-dist

# the fast tests with the lower bounds of install_requires
oldest: $(VENV)-oldest/.installed
	$(VENV)-oldest/bin/python -m pytest -m "not train" -n 2 --dist loadscope

$(VENV)-oldest/.installed: setup.cfg
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	sed -n '/^install_requires/,/^$$/s/^ *\([a-z-]*\)>=/\1==/p' setup.cfg > $(@D)/oldest.txt
	$(@D)/bin/python -m pip install -q -c $(@D)/oldest.txt -e '.[test]'
	touch $@

# the site, in build/docs: a warning (a broken link inside it, a bad docstring) is an error
docs: $(VENV)/.installed-docs
	$(BIN)/python -W ignore -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "open build/docs/index.html"

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install -q -e '.[docs]'
	touch $@

# run the notebooks and store their outputs; `make nbs NBS=nbs/01_multilabel.ipynb` runs one
nbs: $(VENV)/.installed
	$(BIN)/python nbs/run.py $(NBS)

# torch and torchvision come from one index as a pair, together with all the rest
$(VENV)/.installed: setup.cfg
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-dist $(VENV)-oldest build dist *.egg-info demo
