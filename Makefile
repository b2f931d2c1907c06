# rlhf-trl: from preference pairs to a comparison of PPO, GRPO and DPO.

PROFILE ?= demo
RUNS    ?= runs
PYTHON  ?= python3
POLICY  ?= sft

INSTALLED := .venv/.installed
RUN       := .venv/bin/python
STUDIES   := correctness chaos bench
GOALS     := $(filter-out demo,$(MAKECMDGOALS)) $(if $(filter demo,$(MAKECMDGOALS)),all)
ifeq ($(PROFILE),demo)
# So small a model gains nothing from more threads.
export OMP_NUM_THREADS ?= 1
endif

# What the graph of steps is told. ARGS goes to the steps that are named, or with all, check and status to every step.
quoted  = '$(subst ','\'',$(1))'
all    := $(if $(MODEL),--base_model $(MODEL)) $(if $(DATA),--dataset $(DATA)) $(if $(SEED),--seed $(SEED))
to      = $(subst check,all,$(subst status,all,$(1)))
options = $(call quoted,all=$(all)) $(foreach goal,$(if $(ARGS),$(GOALS)),$(call quoted,$(call to,$(goal))=$(ARGS)))
options += $(foreach name,$(filter ARGS_%,$(.VARIABLES)),$(call quoted,$(name:ARGS_%=%)=$($(name))))
GRAPH   = --profile $(PROFILE) --runs $(RUNS) --options $(options) $(if $(LAUNCH),--launch '$(LAUNCH)') $(if $(FRESH),--fresh)

.DEFAULT_GOAL := help
.PHONY: help demo chat check $(STUDIES) test lint clean steps
Makefile: ;

help:
	@echo 'make TARGET [VARIABLE=VALUE ...]'
	@echo
	@echo '  demo     install, then run everything on the demo profile (minutes, no GPU, no network)'
	@echo '  all      everything below: data, training, evaluation, report'
	@echo '  check    train nothing: can every step work, and how much memory will it take?'
	@echo '  status   what is done, what is stale and why, and what is missing'
	@echo '  data     analyse the data: sizes, lengths, what is dropped, overlap'
	@echo '  sft, reward, ppo, grpo, dpo'
	@echo '           train one of them, and first what it needs; nothing is made twice'
	@echo '  eval-reward  the card of the reward model: accuracy, calibration, errors'
	@echo '  samples, score, judge'
	@echo '           sample all policies, score the replies, compare them (OPENAI_API_KEY, or judge: gold in the profile)'
	@echo '  report   write RUNS/PROFILE/report/ANALYSIS.md and report.html'
	@echo '  chat     talk to a trained policy: make chat POLICY=ppo'
	@echo '  test, lint, clean    install, then lint and test; format; delete RUNS/PROFILE'
	@echo '  correctness, chaos, bench'
	@echo '           studies of this project: the trainers on bandits, kill -9, speed and memory'
	@echo
	@echo '  PROFILE  $(filter-out probes,$(basename $(notdir $(wildcard configs/*.yaml))))  (now: $(PROFILE))'
	@echo '  MODEL    base model: a folder or a hub name (default: the one in the profile)'
	@echo '  DATA     preference pairs: a folder, a file or a hub name (default: the one in the profile)'
	@echo '  SEED     seed of data, training and evaluation (default: the one in the profile, or 0)'
	@echo '  RUNS     folder for the results (now: $(RUNS))'
	@echo '  FRESH=1  make the steps that are named anew, whatever they were made of'
	@echo '  LAUNCH   how to start training: $(basename $(notdir $(wildcard configs/accelerate/*))); then options of accelerate launch:'
	@echo '           make all PROFILE=gpt2 LAUNCH="ddp --num_processes 4" (default: one process)'
	@echo '  POLICY   whom to talk to: sft, ppo, grpo, dpo, or the path of a folder (now: $(POLICY))'
	@echo '  ARGS     options for the steps that are named: make ppo ARGS="--kl_strength 0.1"'
	@echo '  ARGS_sft, ARGS_ppo, ... ARGS_eval, ARGS_all'
	@echo '           options for one step of a longer chain, for all of the evaluation, for all steps that have them'

demo: steps ;

# Every other name is a step of the graph, which tells what it does not know
%: steps ;

steps: $(INSTALLED)
	@$(RUN) -m rlhf_trl.pipeline $(GOALS) $(GRAPH)

# A name is that of a run; nothing is trained first, as that may take days
chat: $(INSTALLED)
	@$(RUN) -m eval chat --policy $(if $(findstring /,$(POLICY)),,$(RUNS)/$(PROFILE)/)$(POLICY) $(if $(SEED),--seed $(SEED)) $(ARGS)

check: $(INSTALLED)
	@$(RUN) -m eval check $(GRAPH)

# Studies of this project itself. With ARGS="--model FOLDER --dataset FOLDER" bench takes a real model and real data, too
$(STUDIES): %: $(INSTALLED)
	$(if $(filter correctness,$@),,@$(RUN) -m rlhf_trl.pipeline reward --profile demo --runs $(RUNS))
	$(RUN) benchmarks/$(subst bench,speed,$@).py $(if $(filter correctness,$@),,$(RUNS)/demo $(ARGS))

test: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pytest --numprocesses 2 --dist loadfile

lint: $(INSTALLED)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:
	rm -rf $(RUNS)/$(PROFILE)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'error: Python 3.11 or newer is needed; set PYTHON=' >&2; exit 2; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@
