# Everything installs into .venv; nothing but packages is downloaded.
#   make curate             draws sample videos and curates them
#   make curate INPUT=videos OUTPUT=out/mine CONFIG=configs/local.yaml ARGS="select.seed=1"
#   make train              trains a tiny Presto on the output of `make curate`
PYTHON ?= python3
CONFIG ?= configs/local.yaml
OUTPUT ?= out/samples-dataset
SAMPLES ?= out/samples
TRAIN ?= configs/train/smoke.yaml
ARGS ?=
RUN := .venv/bin/python

ifneq ($(filter command,$(foreach name,input output config args,$(origin $(name)))),)
$(error names are in capitals: INPUT, OUTPUT, CONFIG and ARGS)
endif
ifneq ($(strip $(INPUT)),)
ifeq ($(origin OUTPUT),file)
$(error INPUT needs OUTPUT, a folder of its own for the dataset: OUTPUT=out/NAME)
endif
endif

.PHONY: curate plan train score select reselect caption export test test-slow check \
	bench-shots bench-score bench-ray bench-select bench-driver bench-models

curate: .venv/base
ifeq ($(strip $(INPUT)),)
	$(RUN) -m pipelines.samples "$(SAMPLES)"
endif
	$(RUN) -m pipelines.curate "$(CONFIG)" input="$(or $(INPUT),$(SAMPLES))" output="$(OUTPUT)" $(ARGS)

plan score caption export: .venv/base
	$(RUN) -m pipelines.$@ "$(CONFIG)" $(if $(INPUT),input="$(INPUT)") output="$(OUTPUT)" $(ARGS)

# A tiny Presto on the output of `make curate`; writes out/train-smoke/loss.png and samples/.
train: .venv/train
	$(RUN) -m training.train "$(TRAIN)" data.dataset="$(OUTPUT)" $(ARGS)

# Another policy on an existing output: takes seconds, decodes nothing.
select reselect: .venv/base
	$(RUN) -m pipelines.select "$(CONFIG)" output="$(OUTPUT)" $(ARGS)

# Three processes for two cores: a test often waits, for Ray, a server or a child, and meanwhile
# another one computes.
test: .venv/dev
	OMP_NUM_THREADS=1 .venv/bin/pytest -n 3 --dist worksteal -m "not slow and not gpu" $(ARGS)

test-slow: .venv/dev
	.venv/bin/pytest -m slow $(ARGS)

check: .venv/dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy curation stages pipelines training

# One command per number in docs/measurements; ARGS="--quick" and the like are passed on.
bench-shots: BENCHMARK := shots
bench-models: BENCHMARK := models_gpu
bench-score: BENCHMARK := score
bench-ray: BENCHMARK := ray_overhead
bench-select: BENCHMARK := selection
bench-driver: BENCHMARK := driver
bench-shots bench-score bench-ray bench-select bench-driver bench-models: .venv/dev
	$(RUN) -m benchmarks.$(BENCHMARK) $(ARGS)

INSTALLING = @echo "installing into .venv: a few minutes"

.venv/base: pyproject.toml constraints.txt
	$(INSTALLING)
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -c constraints.txt -e .
	touch $@

.venv/models: .venv/base
	$(INSTALLING)
	.venv/bin/pip install -q -c constraints.txt -e ".[models,transnet]"
	touch $@

.venv/train: .venv/base
	$(INSTALLING)
	.venv/bin/pip install -q -c constraints.txt -e ".[train]"
	touch $@

.venv/dev: .venv/base
	$(INSTALLING)
	.venv/bin/pip install -q -c constraints.txt -e ".[dev]"
	touch $@
