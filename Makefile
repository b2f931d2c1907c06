# rlhf-trl: from preference pairs to a comparison of PPO, GRPO and DPO.

PROFILE ?= demo
RUNS    ?= runs
SEED    ?= 0
MODEL   ?=
DATA    ?=
ARGS    ?=
PYTHON  ?= python3
LAUNCH  ?=
POLICY  ?= sft

PROFILES  := $(filter-out accelerate,$(notdir $(patsubst %/,%,$(wildcard configs/*/))))
LAUNCHERS := $(basename $(notdir $(wildcard configs/accelerate/*.yaml)))
ifeq ($(filter $(PROFILE),$(PROFILES)),)
$(error there is no profile $(PROFILE); choose one of $(PROFILES))
endif
ifneq ($(filter-out $(LAUNCHERS),$(firstword $(LAUNCH))),)
$(error there is no launcher $(firstword $(LAUNCH)); choose one of $(LAUNCHERS))
endif
ifneq ($(and $(filter zero% fsdp%,$(firstword $(LAUNCH))),$(filter demo all ppo report samples score judge,$(MAKECMDGOALS))),)
$(error PPO works with LAUNCH=ddp, not with $(firstword $(LAUNCH)); name other targets (sft, reward, dpo, grpo), and then go on without)
endif
OUT       := $(RUNS)/$(PROFILE)
CONFIG    := configs/$(PROFILE)
INSTALLED := .venv/.installed
RUN       := .venv/bin/python

# Training, and the sampling and scoring of all policies, which always have whole models in each process
launch = $(if $(LAUNCH),.venv/bin/accelerate launch --config_file configs/accelerate/$(1).yaml $(wordlist 2,99,$(LAUNCH)),$(RUN))
TRAIN  := $(call launch,$(firstword $(LAUNCH)))
SHARED := $(call launch,$(if $(filter single_gpu,$(LAUNCH)),single_gpu,ddp))

# The demo makes its own data and model; every other profile names them in its configs.
ifeq ($(PROFILE),demo)
# So small a model gains nothing from more threads.
export OMP_NUM_THREADS ?= 1
DEMO  := $(OUT)/model/config.json
MODEL := $(or $(MODEL),$(OUT)/model)
DATA  := $(or $(DATA),$(OUT)/dataset)
endif

STEPS := data sft reward ppo grpo dpo eval-reward samples score judge

# ARGS goes to the steps named on the command line, not to those that they first need.
args = $(if $(filter $(1),$(MAKECMDGOALS)),$(ARGS)) $(ARGS_$(1))
ifneq ($(ARGS),)
ifeq ($(filter $(STEPS) chat bench,$(MAKECMDGOALS)),)
$(error ARGS goes to the step named as target (make ppo ARGS=...); for a step of a longer chain set ARGS_ppo, for the report ARGS_eval)
endif
endif
GIVEN  := --seed $(SEED) $(if $(DATA),--dataset $(DATA))
COMMON := $(GIVEN) $(ARGS_dataset)
evaluate = $(or $(2),$(RUN)) -m eval $(1) --config $(CONFIG)/eval.yaml --output_dir $(OUT) $(COMMON) $(ARGS_eval)

.DEFAULT_GOAL := help
.PRECIOUS: $(OUT)/%/manifest.json $(OUT)/data/data.json $(OUT)/reward-model/card.json $(OUT)/report/ANALYSIS.md  # they appear when complete; an interrupt must not delete them
.PHONY: help demo all $(STEPS) report chat check correctness chaos bench test lint clean

help:
	@echo 'make TARGET [VARIABLE=VALUE ...]'
	@echo
	@echo '  demo     install, then run everything on the demo profile (minutes, no GPU, no network)'
	@echo '  all      everything below: data, training, evaluation, report'
	@echo '  check    train nothing: can every step work, and how much memory will it take?'
	@echo '  data     analyse the data: sizes, lengths, what is dropped, overlap'
	@echo '  sft, reward, ppo, grpo, dpo'
	@echo '           train one of them, and first what it needs; nothing is made twice'
	@echo '  eval-reward'
	@echo '           the card of the reward model: accuracy, calibration, errors'
	@echo '  samples  sample all policies on the same prompts'
	@echo '  score    score the replies: reward model, true rule, KL'
	@echo '  judge    compare the replies pair by pair (OPENAI_API_KEY, or judge: gold in the profile)'
	@echo '  report   write RUNS/PROFILE/report/ANALYSIS.md and report.html'
	@echo '  chat     talk to a trained policy: make chat POLICY=ppo'
	@echo '  test     install, then lint and run the tests'
	@echo '  clean    delete RUNS/PROFILE'
	@echo '  correctness, chaos, bench'
	@echo '           studies of this project: the trainers on bandits, kill -9, speed and memory'
	@echo
	@echo '  PROFILE  $(PROFILES)  (now: $(PROFILE))'
	@echo '  MODEL    base model: a folder or a hub name (default: the one in the profile)'
	@echo '  DATA     preference pairs: a folder, a file or a hub name (default: the one in the profile)'
	@echo '  SEED     seed of data, training and evaluation (now: $(SEED))'
	@echo '  RUNS     folder for the results (now: $(RUNS))'
	@echo '  LAUNCH   how to start training: $(LAUNCHERS); options of accelerate launch may follow:'
	@echo '           make all PROFILE=gpt2 LAUNCH="ddp --num_processes 4" (default: one process)'
	@echo '  POLICY   whom to talk to: sft, ppo, grpo, dpo, or the path of a folder (now: $(POLICY))'
	@echo '  ARGS     options for the recipe named as target: make ppo ARGS="--kl_strength 0.1"'
	@echo '  ARGS_sft, ARGS_ppo, ...  options for one step of a longer chain: make all ARGS_ppo="--kl_strength 0.1"'
	@echo '  ARGS_dataset             options for all steps that say how to read DATA: ARGS_dataset="--columns prompt=question"'
	@echo '  ARGS_eval                options for all of data, eval-reward, samples, score, judge and report'

demo:
	@$(MAKE) --no-print-directory PROFILE=demo all

all: report
sft reward ppo grpo dpo: %: $(OUT)/%/manifest.json
data: $(OUT)/data/data.json
eval-reward: $(OUT)/reward-model/card.json
samples: $(OUT)/samples/manifest.json
score: $(OUT)/scores/manifest.json
report: $(OUT)/report/ANALYSIS.md

$(OUT)/model/config.json: | $(INSTALLED)
	$(RUN) -m rlhf_trl.demo --output_dir $(OUT) --seed $(SEED)

$(OUT)/sft/manifest.json: $(CONFIG)/sft.yaml $(DEMO) | $(INSTALLED)
	$(TRAIN) recipes/sft.py --config $< --output_dir $(@D) $(COMMON) $(if $(MODEL),--model_name_or_path $(MODEL)) $(call args,sft)

$(OUT)/reward/manifest.json: $(CONFIG)/reward.yaml $(OUT)/sft/manifest.json | $(INSTALLED)
	$(TRAIN) recipes/reward.py --config $< --output_dir $(@D) $(COMMON) --model_name_or_path $(OUT)/sft $(call args,reward)

# DPO takes only the scale of the strength of the KL from the reward model: with a beta of its own it needs none
own_beta := $(or $(findstring --beta,$(call args,dpo)),$(shell grep -s '^beta:' $(CONFIG)/dpo.yaml))
REWARDED := $(patsubst %,$(OUT)/%/manifest.json,ppo grpo $(if $(own_beta),,dpo))
$(REWARDED): $(OUT)/reward/manifest.json
$(REWARDED): reward = --reward_model_path $(OUT)/reward
$(OUT)/ppo/manifest.json $(OUT)/grpo/manifest.json $(OUT)/dpo/manifest.json: $(OUT)/%/manifest.json: $(CONFIG)/%.yaml $(OUT)/sft/manifest.json | $(INSTALLED)
	$(TRAIN) recipes/$*.py --config $< --output_dir $(@D) $(COMMON) --model_name_or_path $(OUT)/sft $(reward) $(call args,$*)

POLICIES := $(foreach policy,sft ppo grpo dpo,$(OUT)/$(policy)/manifest.json)

$(OUT)/data/data.json: $(CONFIG)/eval.yaml $(DEMO) | $(INSTALLED)
	$(call evaluate,data) --tokenizer $(or $(MODEL),$(shell sed -n 's/^model_name_or_path: *//p' $(CONFIG)/sft.yaml)) $(call args,data)

$(OUT)/reward-model/card.json: $(CONFIG)/eval.yaml $(OUT)/reward/manifest.json | $(INSTALLED)
	$(call evaluate,reward-model) $(call args,eval-reward)

SAMPLED := $(CONFIG)/eval.yaml $(wildcard configs/probes.yaml $(CONFIG)/probes.yaml) $(POLICIES)
$(OUT)/samples/manifest.json: $(SAMPLED) | $(INSTALLED)
	$(call evaluate,samples,$(SHARED)) $(call args,samples)

# Samples what is missing, too: in one process, as models and libraries take long to load
$(OUT)/scores/manifest.json: $(SAMPLED) $(OUT)/reward/manifest.json | $(INSTALLED)
	$(call evaluate,score,$(SHARED)) $(call args,samples) $(call args,score)

# By name it always runs: what has a verdict is not asked again, what failed or was left for the budget's sake is
JUDGE = $(call evaluate,judge) $(call args,judge)
judge: $(OUT)/scores/manifest.json
	$(JUDGE)
$(OUT)/judge/manifest.json: $(OUT)/scores/manifest.json
	$(JUDGE)

$(OUT)/report/ANALYSIS.md: $(OUT)/data/data.json $(OUT)/scores/manifest.json $(OUT)/judge/manifest.json $(OUT)/reward-model/card.json
	$(call evaluate,report)

# A name is that of a run; nothing is trained first, as that may take days
chat: | $(INSTALLED)
	@$(RUN) -m eval chat --policy $(if $(findstring /,$(POLICY)),,$(OUT)/)$(POLICY) --seed $(SEED) $(call args,chat)

# In one process on one GPU, whatever LAUNCH is
comma := ,
quoted = '$(subst ','\'',$(1))'
check: $(DEMO) | $(INSTALLED)
	$(if $(LAUNCH),gpus=$${CUDA_VISIBLE_DEVICES:-0}; CUDA_VISIBLE_DEVICES=$${gpus%%$(comma)*}) $(RUN) -m eval check --profile $(CONFIG) --output_dir $(OUT) $(GIVEN) $(if $(MODEL),--model_name_or_path $(MODEL)) $(foreach step,sft reward ppo grpo dpo,--$(step)=$(call quoted,$(ARGS_dataset) $(ARGS_$(step)))) --eval=$(call quoted,$(ARGS_dataset) $(ARGS_eval) $(ARGS_judge))

# Studies of this project itself
correctness: $(INSTALLED)
	$(RUN) benchmarks/correctness.py

chaos: $(RUNS)/demo/sft/manifest.json $(RUNS)/demo/reward/manifest.json
	$(RUN) benchmarks/chaos.py $(RUNS)/demo

# With ARGS="--model FOLDER --dataset FOLDER" on a real model and real data, too
bench: $(RUNS)/demo/sft/manifest.json $(RUNS)/demo/reward/manifest.json
	$(RUN) benchmarks/speed.py $(RUNS)/demo $(ARGS)

test: $(INSTALLED)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pytest --numprocesses 2 --dist loadfile

lint: $(INSTALLED)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:
	rm -rf $(OUT)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'error: Python 3.11 or newer is needed; set PYTHON=' >&2; exit 2; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@
