"""Options that have no place in a recipe: which, why, and what to do instead.

All others of TRL's config classes do what their help says. `tests/test_options.py` holds their names, so that an option
of a newer TRL or transformers fails there until somebody has looked.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

# Where we differ from TRL's own defaults: less padding, no second model for DPO's reference, no dropout, and the same
# sampling and rewards for PPO and GRPO
DEFAULTS = {
    **{"train_sampling_strategy": "group_by_length", "precompute_ref_log_probs": True, "seed": 0},
    **{"lora_dropout": 0.0, "disable_dropout": True, "temperature": 1.0, "stop_token": "eos"},
    **{"missing_eos_penalty": 1.0, "num_sample_generations": 0, "scale_rewards": "none"},
}

SFT, REWARD, PPO, GRPO, DPO = "sft", "reward", "ppo", "grpo", "dpo"
ALL, OFFLINE, ONLINE, NOT_PPO = {SFT, REWARD, PPO, GRPO, DPO}, {SFT, REWARD, DPO}, {PPO, GRPO}, {SFT, REWARD, GRPO, DPO}

Condition = Callable[[Any, dict[str, Any]], bool]  # of an option's value and of all options


class Refusal(NamedTuple):
    """Options that would be accepted and do nothing, or harm."""

    recipes: set[str]
    values: dict[str, Any]  # the options, each with a value that is refused
    why: str
    instead: str = "leave it out"
    when: Condition | None = None  # None: all values but the default


def is_in(*values: Any) -> Condition:
    return lambda value, _: value in values


def while_not(option: str, *values: Any) -> Condition:
    """Another option has none of these values."""
    return lambda _, options: not set(values).intersection(listed(options[option]))


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


PPO_IGNORES = "TRL's PPOTrainer does not read it"
SAMPLERS = {"top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "do_sample", "num_beams", "temperature"}
WATCHING = ("reduce_lr_on_plateau", "greedy")  # learning rates that depend on an evaluation

REFUSED = [
    # Rows, their tokens and their order
    Refusal(
        OFFLINE,
        {"max_length": 99, "truncation_mode": "keep_end"},
        "prompts and replies are never cut",
        "set max_prompt_tokens and max_completion_tokens",
    ),
    Refusal(
        ALL,
        {"dataset_text_field": "prompt", "dataset_kwargs": {"skip_prepare_dataset": True}, "dataset_num_proc": 2}
        | {"remove_unused_columns": None, "label_names": ["ids"], "length_column_name": "size"},
        "rows are tokenized once for all recipes, and trainers get their ids",
    ),
    Refusal(
        {SFT, DPO},
        {"packing": True, "packing_strategy": "wrapped", "padding_free": True, "eval_packing": True},
        "batches are of like length, which saves as much",
    ),
    Refusal({SFT}, {"completion_only_loss": False, "assistant_only_loss": True}, "the loss is on completions only"),
    Refusal(
        {GRPO},
        {"chat_template_kwargs": {"enable_thinking": True}},
        "the chat template is read with its defaults",
        "set chat_template_path for SFT",
    ),
    Refusal(
        {PPO},
        {"stop_token": None, "stop_token_id": 5},
        "a reply ends where the chat template says",
        "leave it out, or set eos_token when SFT trains",
    ),
    Refusal(ALL, {"data_seed": 1}, "one seed decides all of a run", "set seed"),
    Refusal({SFT, GRPO}, {"shuffle_dataset": None}, "rows are shuffled by seed", "set train_sampling_strategy"),
    Refusal(
        ALL,
        {"train_sampling_strategy": "batch_rebalance"},
        "trainers drop the lengths that it needs",
        "set group_by_length or random",
        is_in("batch_rebalance"),
    ),
    Refusal(
        ONLINE,
        {"train_sampling_strategy": "sequential"},
        "prompts are shuffled by seed",
        "set group_by_length or random",
        is_in("sequential"),
    ),
    Refusal(
        {SFT},
        {"use_liger_kernel": True},
        "TRL then drops the lengths that group_by_length needs",
        "set train_sampling_strategy: random",
        while_not("train_sampling_strategy", "random", "sequential"),
    ),
    Refusal(
        ALL,
        {"auto_find_batch_size": True},
        "the size of a batch decides the result",
        "lower per_device_train_batch_size and raise gradient_accumulation_steps",
    ),
    Refusal(
        ALL,
        {"per_device_train_batch_size": 0, "gradient_accumulation_steps": 0, "per_device_eval_batch_size": 0},
        "there is no batch of that size",
        "it must be at least 1",
        lambda value, _: value < 1,
    ),
    Refusal(ONLINE, {"dataloader_drop_last": True}, "batches are always whole"),
    Refusal(ONLINE, {"accelerator_config": {"split_batches": True}}, "processes share a batch out by whole groups"),
    # Models
    Refusal(
        ALL,
        {"model_init_kwargs": {"dtype": "bfloat16"}, "sft_model_path": "m"},
        "recipes load the models",
        "set model_name_or_path, model_revision, dtype and attn_implementation",
    ),
    Refusal(
        ALL,
        {"model_revision": "v9"},
        "the model is a folder, which has one revision",
        when=lambda _, options: Path(options["model_name_or_path"] or "nothing").is_dir(),
    ),
    Refusal(
        ALL,
        {"load_in_4bit": True, "load_in_8bit": True},
        "a quantized model cannot be trained itself",
        "set use_peft: true to train LoRA adapters on it",
        while_not("use_peft", True),
    ),
    Refusal(
        ALL,
        {"load_in_4bit": True, "load_in_8bit": True},
        "TRL trains the adapters of a quantized model in bfloat16",
        "set dtype: bfloat16",
        while_not("dtype", "bfloat16"),
    ),
    Refusal({PPO}, {"load_in_8bit": True}, "8 bits cannot be shared by value and reward model", "set load_in_4bit"),
    Refusal(ALL, {"lora_task_type": "SEQ_CLS"}, "each recipe knows the task of its model"),
    Refusal(
        {REWARD, GRPO, DPO},
        {"lora_dropout": 0.1},
        "dropout is off",
        "set disable_dropout: false, or lora_dropout: 0.0",
        lambda value, options: value > 0 and options["disable_dropout"],
    ),
    Refusal({PPO}, {"lora_dropout": 0.1}, "TRL's PPO has no dropout", "set 0.0", lambda value, _: value > 0),
    Refusal(
        {PPO},
        {"model_adapter_name": "a", "ref_adapter_name": "b"},
        "the reference is the model that PPO starts from",
        "set model_name_or_path",
    ),
    Refusal(ALL, {"use_cache": True}, "what is trained on is read whole, and sampling has its cache anyway"),
    Refusal(
        OFFLINE,
        {"activation_offloading": True},
        "there is no accelerator to take activations from",
        when=while_not("use_cpu", False),
    ),
    Refusal(
        {DPO},
        {"use_liger_kernel": True, "sync_ref_model": True, "fsdp": "full_shard"},
        "the reference is asked before training",
        "set precompute_ref_log_probs: false",
        while_not("precompute_ref_log_probs", False),
    ),
    Refusal(
        NOT_PPO,
        {"fp16": True},
        "a CPU computes in 32 bits or in bfloat16",
        "set bf16: true",
        while_not("use_cpu", False),
    ),
    # Evaluation
    Refusal(ALL, {"do_train": True, "do_eval": True, "do_predict": True}, "recipes train", "set eval_strategy"),
    Refusal(
        ONLINE,
        {"eval_strategy": "steps", "eval_steps": 5, "eval_delay": 2, "eval_on_start": True, "num_generations_eval": 2}
        | {"per_device_eval_batch_size": 2},
        "a method that samples has no held-out loss",
        "leave it out; make score evaluates on held-out prompts",
    ),
    Refusal(ONLINE, {"lr_scheduler_type": "greedy"}, "it watches an evaluation", "set another", is_in(*WATCHING)),
    Refusal(
        {PPO},
        {"num_sample_generations": 5},
        "it would sample for held-out prompts, and there are none",
        "leave it out; make samples has samples",
        lambda value, _: value > 0,
    ),
    Refusal(
        ALL,
        {"load_best_model_at_end": True, "greater_is_better": True, "metric_for_best_model": "accuracy"},
        "the last weights are published, and eval_loss is what is watched",
        "choose the number of steps by eval_loss",
    ),
    Refusal(ALL, {"save_strategy": "best"}, "the last weights are published", "set steps or epoch", is_in("best")),
    Refusal(
        ALL,
        {"prediction_loss_only": True, "include_for_metrics": ["loss"], "batch_eval_metrics": True}
        | {"eval_accumulation_steps": 2, "eval_do_concat_batches": False, "eval_use_gather_object": True},
        "an evaluation keeps nothing but losses",
    ),
    Refusal(ALL, {"fp16_full_eval": True, "bf16_full_eval": True}, "an evaluation computes as the training does"),
    # Checkpoints, and what is published
    Refusal(
        ALL,
        {"resume_from_checkpoint": "c"},
        "a run finds its last checkpoint",
        "run the same command again, and it goes on from there",
    ),
    Refusal(
        ALL,
        {"save_only_model": True, "ignore_data_skip": True, "restore_callback_states_from_checkpoint": True},
        "a killed run could not go on as it was",
        "leave it out; a finished run keeps only models anyway",
    ),
    Refusal(
        ALL, {"enable_jit_checkpoint": True}, "it stops in the middle of a step", "lower save_steps, and kill the run"
    ),
    Refusal(ALL, {"save_on_each_node": True}, "a run is one folder", "set output_dir to a disk that all machines see"),
    Refusal(
        ALL,
        {"push_to_hub": True, "hub_model_id": "me/it", "hub_strategy": "end", "hub_token": "t", "hub_revision": "r"}
        | {"hub_private_repo": True, "hub_always_push": True, "log_completions_hub_repo": "me/it"},
        "what a trainer pushes is not what a run publishes",
        "upload the finished folder: hf upload NAME FOLDER",
    ),
    Refusal(ALL, {"skip_memory_metrics": False}, "its figures are logged nowhere", "see manifest.json for the memory"),
    Refusal(ALL, {"local_rank": 1, "parallelism_config": "c"}, "the launcher says that", "set LAUNCH"),
    # Losses
    Refusal(
        NOT_PPO - {SFT},
        {"label_smoothing_factor": 0.1, "average_tokens_across_devices": False},
        "the loss is not that of labels",
        "leave it out; DPO has label_smoothing",
    ),
    Refusal({GRPO}, {"include_num_input_tokens_seen": True}, "TRL cannot count them here", "see num_tokens"),
    Refusal({GRPO}, {"neftune_noise_alpha": 5.0}, "replies would be sampled with that noise"),
    Refusal(
        ALL,
        {"warmup_steps": 5},
        "the learning rate is constant",
        "set lr_scheduler_type: constant_with_warmup",
        lambda _, options: options["lr_scheduler_type"] == "constant",
    ),
    Refusal(
        ALL,
        {"optim_args": "eps=1e-3"},
        "the optimizer does not read it",
        "set adam_beta1, adam_beta2, adam_epsilon and weight_decay",
        lambda _, options: options["optim"] in ("adamw_torch", "adamw_torch_fused", "adafactor"),
    ),
    Refusal(
        ALL,
        {"optim_target_modules": ["q_proj"]},
        "the optimizer takes all parameters",
        "set optim to one of galore's or apollo's",
        lambda _, options: not options["optim"].startswith(("galore", "apollo")),
    ),
    # Sampling
    Refusal(
        ONLINE,
        {"temperature": 0},
        "what is learned from must be sampled",
        "temperature must be above 0",
        lambda value, _: value <= 0,
    ),
    Refusal(
        {GRPO},
        {"top_p": 0.9, "top_k": 50, "min_p": 0.1, "repetition_penalty": 1.1},
        "samples would come from another distribution than the one whose log-probabilities are trained",
    ),
    Refusal(
        {GRPO},
        {"generation_kwargs": {"top_p": 0.9}},
        "samples would come from another distribution than the one whose log-probabilities are trained",
        when=lambda value, _: any(f'"{name}"' in value for name in SAMPLERS),
    ),
    Refusal(
        {GRPO},
        {"use_transformers_continuous_batching": True, "use_transformers_paged": True}
        | {"transformers_continuous_batching_config": {"max_memory_percent": 0.4}},
        "TRL casts the trained weights to 16 bits for it",
        "set use_vllm: true to sample faster",
    ),
    Refusal(
        {GRPO},
        {
            "multi_objective_aggregation": "normalize_then_sum",
            "max_tool_calling_iterations": 2,
            "log_multimodal": False,
        },
        "there is one reward, and there are no tools and images",
    ),
    # PPO, whose trainer reads few of transformers' options
    Refusal(
        {PPO},
        {"world_size": 2, "num_total_batches": 2, "batch_size": 2, "local_batch_size": 2, "micro_batch_size": 2}
        | {"mini_batch_size": 2, "local_mini_batch_size": 2},
        "TRL computes it",
        "set per_device_train_batch_size, gradient_accumulation_steps, num_mini_batches and total_episodes",
    ),
    Refusal({PPO}, {"max_steps": 2}, "PPO counts episodes", "set total_episodes"),
    Refusal({PPO}, {"bf16": True}, PPO_IGNORES, "set dtype: bfloat16"),
    Refusal({PPO}, {"fp16": True}, PPO_IGNORES, "set dtype: float16"),
    Refusal(
        {PPO},
        {
            "deepspeed": "z.json",
            "fsdp": "full_shard",
            "fsdp_config": {"version": 2},
            "ds3_gather_for_generation": False,
        },
        "PPO does not work with DeepSpeed and FSDP",
        "set LAUNCH=ddp",
    ),
    Refusal(
        {PPO},
        {"logging_steps": 5, "logging_strategy": "no"},
        "TRL's PPO logs every batch",
        when=lambda value, _: value not in (1, "steps"),
    ),
    Refusal({PPO}, {"save_strategy": "epoch"}, "PPO counts no epochs", "set save_steps", is_in("epoch")),
    Refusal(
        {PPO},
        {"optim": "schedule_free_adamw"},
        "TRL's PPO does not call it as it must be called",
        "set another",
        lambda value, _: value.startswith(("schedule_free", "lomo", "adalomo")),
    ),
    Refusal(
        {PPO},
        {"dataloader_in_order": False, "dataloader_multiprocessing_context": "fork", "dataloader_num_workers": 2}
        | {"dataloader_persistent_workers": True, "dataloader_pin_memory": False, "dataloader_prefetch_factor": 2}
        | {"ddp_broadcast_buffers": True, "ddp_bucket_cap_mb": 25, "ddp_find_unused_parameters": True}
        | {"ddp_static_graph": True, "debug": "underflow_overflow", "full_determinism": True}
        | {"gradient_checkpointing_kwargs": {"use_reentrant": True}, "log_level": "debug", "log_level_replica": "debug"}
        | {"activation_checkpointing_kwargs": {"use_reentrant": True}, "log_on_each_node": False}
        | {"logging_nan_inf_filter": False, "neftune_noise_alpha": 5.0, "torch_compile": True}
        | {"torch_compile_backend": "eager", "torch_compile_mode": "default", "torch_empty_cache_steps": 5}
        | {"use_liger_kernel": True, "label_smoothing_factor": 0.1}
        | {"average_tokens_across_devices": False, "include_num_input_tokens_seen": True},
        PPO_IGNORES,
    ),
]

# Options that do nothing until another has one of these values; they may stay where that one is switched off by name
NEEDED = [
    (
        ALL,
        {"lora_r": 4, "lora_alpha": 4, "lora_dropout": 0.0, "lora_target_modules": ["q_proj", "v_proj"]}
        | {"lora_target_parameters": ["w"], "lora_modules_to_save": ["lm_head"], "use_rslora": True, "use_dora": True},
        "use_peft",
        (True,),
    ),
    (
        ALL,
        {"bnb_4bit_quant_type": "fp4", "use_bnb_nested_quant": True, "bnb_4bit_quant_storage": "uint8"},
        "load_in_4bit",
        (True,),
    ),
    (OFFLINE, {"eval_steps": 5}, "eval_strategy", ("steps",)),
    (OFFLINE, {"eval_delay": 2, "eval_on_start": True}, "eval_strategy", ("steps", "epoch")),
    ({SFT, DPO}, {"per_device_eval_batch_size": 2}, "eval_strategy", ("steps", "epoch")),
    (
        ALL,
        {"project": "p", "trackio_space_id": "me/s", "trackio_bucket_id": "me/b", "trackio_static_space_id": "me/s"},
        "report_to",
        ("trackio", "all"),
    ),
    ({SFT}, {"label_smoothing_factor": 0.1}, "loss_type", ("nll",)),
    ({DPO}, {"label_smoothing": 0.1}, "loss_type", ("exo_pair", "robust", "aot", "aot_unpaired")),
    ({DPO}, {"discopop_tau": 0.1}, "loss_type", ("discopop",)),
    ({DPO}, {"f_alpha_divergence_coef": 0.1}, "f_divergence_type", ("alpha_divergence",)),
    ({GRPO, DPO}, {"ref_model_mixup_alpha": 0.5, "ref_model_sync_steps": 5}, "sync_ref_model", (True,)),
    ({GRPO}, {"sapo_temperature_neg": 1.0, "sapo_temperature_pos": 2.0}, "loss_type", ("sapo",)),
    (
        {GRPO},
        {"vespo_k_pos": 1.0, "vespo_k_neg": 1.0, "vespo_lambda_pos": 1.0, "vespo_lambda_neg": 1.0},
        "loss_type",
        ("vespo",),
    ),
    (
        {GRPO},
        {"entropy_coef_min": 0.1, "entropy_coef_max": 0.5, "entropy_coef_delta": 0.1, "entropy_target": 0.1},
        "use_adaptive_entropy",
        (True,),
    ),
    ({GRPO}, {"num_completions_to_print": 2, "log_unique_prompts": True}, "log_completions", (True,)),
    (
        {GRPO},
        {"vllm_mode": "server", "vllm_model_impl": "transformers", "vllm_enable_sleep_mode": True}
        | {"vllm_structured_outputs_regex": ".*", "vllm_server_base_url": "http://h", "vllm_server_host": "h"}
        | {"vllm_server_port": 1, "vllm_server_timeout": 1.0, "vllm_group_port": 1, "vllm_max_model_length": 99}
        | {"vllm_gpu_memory_utilization": 0.5, "vllm_tensor_parallel_size": 2}
        | {"vllm_importance_sampling_correction": False, "vllm_importance_sampling_mode": "token_mask"}
        | {"vllm_importance_sampling_clip_max": 2.0, "vllm_importance_sampling_clip_min": 0.1}
        | {"vllm_importance_sampling_cap": 2.0},
        "use_vllm",
        (True,),
    ),
]

# Values of which TRL would find out in training that it has no others
KNOWN = [
    ({GRPO}, "loss_type", ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo")),
    ({GRPO}, "importance_sampling_level", ("token", "sequence")),
    ({GRPO}, "scale_rewards", ("group", "batch", "none")),
    (
        {GRPO},
        "vllm_importance_sampling_mode",
        ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    ),
    (
        {DPO},
        "loss_type",
        (
            *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot"),
            *("aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
        ),
    ),
    ({DPO}, "f_divergence_type", ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")),
]

# Options whose default would be refused, too: recipes do otherwise
NOT_THE_DEFAULT = ("max_length", "logging_steps")

# Options that need a package which is not among our own dependencies or not to be had everywhere: module, what to do
PACKAGES = {
    "load_in_4bit": ("bitsandbytes", "pip install bitsandbytes"),
    "load_in_8bit": ("bitsandbytes", "pip install bitsandbytes"),
    "use_vllm": ("vllm", "pip install '.[vllm]'"),
    "use_liger_kernel": ("liger_kernel", "pip install liger-kernel"),
}


def refusals(recipe: str, options: dict[str, Any], defaults: dict[str, Any], named: set[str]) -> Iterator[str]:
    """What is to be said against the options of a recipe.

    Args:
        options: all of them, with their values.
        defaults: the values that they have where nothing is said of them.
        named: those of which something is said.
    """
    given = {
        name: value
        for name, value in options.items()
        if value != defaults[name] or (name in NOT_THE_DEFAULT and name in named)
    }
    for name, (package, remedy) in PACKAGES.items():
        if given.get(name) and find_spec(package) is None:
            yield f"{name} needs {package}, which is not installed; {remedy}, or unset it"
    for recipes, values, why, instead, when in REFUSED:
        for name in values:
            if recipe in recipes and name in given and (when is None or when(given[name], options)):
                value = f": {given[name]}" if when else ""
                yield f"{name}{value} has no place here: {why}; {instead}"
    for recipes, values, needed, wanted in NEEDED:
        if recipe in recipes and not set(wanted).intersection(listed(options[needed])):
            wish = f"{needed} is not {str(wanted[0]).lower()}; set that, or leave it out"
            for name in values:
                if name in given and not (needed in named and options[needed] in (False, "no")):
                    yield f"{name} has no place here: {wish}"
    for recipes, name, known in KNOWN:
        if recipe in recipes and not set(known).issuperset(listed(options[name])):
            yield f"{name}: {options[name]} has no place here: TRL knows no such value; choose of {', '.join(known)}"
