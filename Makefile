# Two commands do everything on a fresh machine: `make demo` and `make test`
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
export MPLBACKEND ?= Agg

.PHONY: demo test slow docs nbs clean

demo: $(VENV)/.installed
	$(BIN)/python -m vision_tasks.demo

# in two processes, each with one thread; the tests of a file stay together
test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadscope

# everything that wants real data or minutes: set VISION_TASKS_DATA and VISION_TASKS_WEIGHTS first
slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

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
	rm -rf $(VENV) build dist *.egg-info demo
