# rlhf-trl: from preference pairs to a comparison of PPO, GRPO and DPO.
PROFILE ?= demo
RUNS    ?= runs
PYTHON  ?= python3
POLICY  ?= sft
define HELP
make TARGET [VARIABLE=VALUE ...]

  demo      install, then run everything on the demo profile (minutes, no GPU, no network)
  all       everything: data, training, evaluation, report
  check     train nothing: can every step work, and how much memory will it take?
  status    what is done, what is stale and why, and what is missing
  data      analyse the data: sizes, lengths, what is dropped, overlap
  sft, reward, ppo, grpo, dpo
            train one of them, and first what it needs; nothing is made twice
  eval-reward, samples, score, judge, report
            the reward model's card; replies, their scores and verdicts; RUNS/PROFILE/report/ANALYSIS.md and report.html
  chat      talk to a trained policy: make chat POLICY=ppo, or the path of a folder
  test, lint, clean        install, lint and test; format; delete RUNS/PROFILE
  correctness, chaos, bench  studies of this project: the trainers on bandits, kill -9, speed and memory

  PROFILE   $(basename $(notdir $(wildcard configs/*.yaml)))  (now: $(PROFILE))
  MODEL     base model: a folder or a hub name (default: the one in the profile)
  DATA      preference pairs: a folder, a file or a hub name (default: the one in the profile)
  SEED      seed of data, training and evaluation (default: the one in the profile, or 0)
  RUNS      folder for the results (now: $(RUNS))
  FRESH=1   make the steps that are named anew, whatever they were made of
  LAUNCH    $(basename $(notdir $(wildcard configs/accelerate/*))), and options of accelerate launch:
            make all PROFILE=gpt2 LAUNCH="ddp --num_processes 4" (default: one process)
  ARGS      options for the steps that are named: make ppo ARGS="--kl_strength 0.1"
  ARGS_sft, ARGS_ppo, ..., ARGS_eval, ARGS_all
            options for a step of a longer chain, for all of the evaluation, for all steps that have them
endef

OUT       := $(RUNS)/$(basename $(notdir $(PROFILE)))
INSTALLED := .venv/.installed
RUN       := .venv/bin/python
STUDIES   := correctness chaos bench
OWN       := help check chat $(STUDIES) test lint clean $(INSTALLED)
# Every other name is one of the graph of steps, which tells what it does not know
STEPS     := $(subst demo,all,$(filter-out $(OWN),$(MAKECMDGOALS)))
# So small a model gains nothing from more threads
ifeq ($(PROFILE),demo)
export OMP_NUM_THREADS ?= 1
endif
# What the graph is told. ARGS of all, check and status go to every step
quoted   = '$(subst ','\'',$(1))'
options  = $(call quoted,all=$(if $(MODEL),--base_model $(call quoted,$(MODEL))) $(if $(DATA),--dataset $(call quoted,$(DATA))) $(if $(SEED),--seed $(SEED)))
options += $(foreach goal,$(if $(ARGS),$(subst check,all,$(filter check,$(MAKECMDGOALS))) $(STEPS:status=all)),$(call quoted,$(goal)=$(ARGS)))
options += $(foreach name,$(filter ARGS_%,$(.VARIABLES)),$(call quoted,$(name:ARGS_%=%)=$($(name))))
GRAPH    = --profile $(PROFILE) --runs $(call quoted,$(RUNS)) --options $(options) $(if $(LAUNCH),--launch $(call quoted,$(LAUNCH))) $(if $(filter-out 0,$(FRESH)),--fresh)

.DEFAULT_GOAL := help
.PHONY: $(filter-out $(INSTALLED),$(OWN)) $(STEPS) demo steps
help: ; $(info $(HELP)) @:
$(STEPS) $(filter demo,$(MAKECMDGOALS)): steps ; @:
steps: $(INSTALLED)
	@$(RUN) -m rlhf_trl.pipeline $(STEPS) $(GRAPH)
check: $(INSTALLED)
	@$(RUN) -m eval check $(GRAPH)
# With what there is, as to train it first may take days
chat: $(INSTALLED)
	@$(RUN) -m eval chat --policy $(call quoted,$(if $(findstring /,$(POLICY)),,$(OUT)/)$(POLICY)) $(if $(SEED),--seed $(SEED)) $(ARGS)
$(STUDIES): $(INSTALLED)
	$(if $(filter correctness,$@),,@$(RUN) -m rlhf_trl.pipeline reward --profile demo --runs $(call quoted,$(RUNS)))
	$(RUN) benchmarks/$(@:bench=speed).py $(if $(filter correctness,$@),,$(call quoted,$(RUNS)/demo) $(ARGS))
test: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pytest --numprocesses 2 --dist loadfile
lint: $(INSTALLED)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
clean:
	rm -rf $(call quoted,$(OUT))
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'error: Python 3.11 or newer is needed; set PYTHON=' >&2; exit 2; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@
