# Commands of the project: each makes the environment it needs first, and uses it again the next time.
#
#   make demo     scenes, training, sampling and evaluation of the default experiment: runs/demo/report.html
#   make showcase every family of scenes, longer: street lamp, blinds, water: runs/showcase/report.html
#   make test     all tests
#   make lint     ruff, and mypy on the public modules
#   make parity   compares the networks with PyTorch's, live (installs PyTorch into an environment of its own)
#   make plans    plans of the A14B pair on TPUs and GPUs that are not there (installs their compilers, 7 GB, likewise)
#   make cluster  several processes against one, their checkpoints, a job under a SLURM of its own; by hand
#   make setup    only the environment, .venv

# the first Python on the PATH that is new enough; `make PYTHON=/path/to/python3.12 ...` chooses another
PYTHON ?= $(shell for p in python3 python python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN := .venv/bin/python
PARITY := .venv-parity/bin/python
PLANS := .venv-plans/bin/python
# a stage says what it does and when, in seconds since the start
BEGAN := $(shell date +%s)
say = @echo "== $$(($$(date +%s) - $(BEGAN))) s: $(1)"

DATA := runs/data
DEMO := runs/demo
SHOWCASE := runs/showcase

.PHONY: setup demo showcase test lint parity plans cluster

setup: .venv/.installed

.venv/.installed: pyproject.toml setup.py constraints.txt
	$(call environment,.venv,test)

.venv-parity/.installed: pyproject.toml setup.py constraints.txt
	$(call environment,.venv-parity,test$(comma)parity)

# the compiler of TPUs by itself: jax[tpu] asks for the one of its own day, plans are made by a later one (docs/scaling.md)
LIBTPU := libtpu==0.0.52
.venv-plans/.installed: pyproject.toml setup.py constraints.txt Makefile
	$(call environment,.venv-plans,cuda12,$(LIBTPU))

comma := ,
# of a folder, extras, and packages beside; the stamp comes last: an interrupted installation is gone on with
define environment
	@if [ -z "$(PYTHON)" ]; then \
		echo "wanjax needs Python 3.11 or newer, and found none on the PATH. Install one, or name it:" \
			"make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "wanjax needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
			"Name another: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(call say,environment $(1) ($$($(PYTHON) -V)))
	@[ -x $(1)/bin/python ] || $(PYTHON) -m venv $(1) || { \
		echo "$(PYTHON) cannot make a virtual environment: install its venv module" \
			"(on Debian and Ubuntu the package python3-venv)" >&2; rm -rf $(1); exit 1; }
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable ".[$(2)]" $(3)
	@touch $(1)/.installed
endef

# glibc keeps freed memory instead of giving it back and touching it anew at every step: 7 % of a training step
demo showcase test: export MALLOC_MMAP_THRESHOLD_ = 1073741824
demo showcase test: export MALLOC_TRIM_THRESHOLD_ = 4294967296
demo showcase test: export MALLOC_TOP_PAD_ = 268435456
demo: setup
	$(call say,scenes: rendering what is not in $(DATA) yet)
	@$(RUN) -m data_pipelines.light_scenes --data_dir $(DATA)
	$(call say,training: both experts$(comma) in $(DEMO); an interrupted run goes on from its last checkpoint)
	@$(RUN) -m experiments.train --config configs/light_scenes_tiny.py --workdir $(DEMO)
	$(call say,sampling: 32 held-out captions into $(DEMO)/samples)
	@$(RUN) -m data_pipelines.light_scenes --data_dir $(DATA) --prompts $(DEMO)/prompts.jsonl
	@$(RUN) -m experiments.sample --checkpoint $(DEMO) --prompts $(DEMO)/prompts.jsonl --out $(DEMO)/samples
	$(call say,evaluation: light of the sampled clips)
	@$(RUN) -m experiments.evaluate --workdir $(DEMO) --references $(DATA) --json $(DEMO)/report.json \
		--report $(DEMO)/report.html --sheet $(DEMO)/sheet.png
	$(call say,done: open $(DEMO)/report.html)

showcase: setup
	$(call say,training: scenes of every family$(comma) both experts$(comma) in $(SHOWCASE))
	@$(RUN) -m experiments.train --config configs/showcase.py --workdir $(SHOWCASE)
	$(call say,sampling: three scenarios into $(SHOWCASE)/samples)
	@$(RUN) -m data_pipelines.light_scenes --data_dir $(DATA) --prompts $(SHOWCASE)/prompts.jsonl --prompts_of showcase
	@$(RUN) -m experiments.sample --checkpoint $(SHOWCASE) --prompts $(SHOWCASE)/prompts.jsonl --out $(SHOWCASE)/samples
	$(call say,evaluation: what the captions state$(comma) after a check of the estimators on rendered clips)
	@$(RUN) -m experiments.evaluate --workdir $(SHOWCASE) --references $(DATA) --references_families all \
		--estimator_clips 100 --json $(SHOWCASE)/report.json --report $(SHOWCASE)/report.html \
		--sheet $(SHOWCASE)/sheet.png
	$(call say,done: open $(SHOWCASE)/report.html)

test: setup
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m mypy

cluster: setup
	$(RUN) -m benchmarks.cluster_processes --folder runs/cluster --result benchmarks/results/cluster_processes.md
	$(RUN) -m benchmarks.cluster_sampling --folder runs/cluster --result benchmarks/results/cluster_sampling.md
	$(RUN) -m benchmarks.cluster_slurm --folder runs/cluster --result benchmarks/results/cluster_slurm.md
	$(RUN) -m benchmarks.checkpoint_processes --folder runs/cluster

parity: .venv-parity/.installed
	$(PARITY) -m pytest tests/parity

plans: .venv-plans/.installed
	$(PLANS) benchmarks/plans.py
