"""Options that have no place in a recipe: which, why, and what to do instead.

All others of TRL's config classes do what their help says. `tests/test_options.py` holds their names, so that an option
of a newer TRL or transformers fails there until somebody has looked.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_trl.config import RECIPES

# Where we differ from TRL's own defaults: less padding, no second model for DPO's reference, no dropout, and the same
# sampling and rewards for PPO and GRPO
DEFAULTS = {
    **{"train_sampling_strategy": "group_by_length", "precompute_ref_log_probs": True, "seed": 0},
    **{"lora_dropout": 0.0, "disable_dropout": True, "temperature": 1.0, "stop_token": "eos"},
    **{"missing_eos_penalty": 1.0, "num_sample_generations": 0, "scale_rewards": "none"},
}

SFT, REWARD, PPO, GRPO, DPO = "sft", "reward", "ppo", "grpo", "dpo"
ALL, ONLINE = set(RECIPES), {name for name, recipe in RECIPES.items() if recipe.samples}
OFFLINE = ALL - ONLINE
NOT_PPO = ALL - {PPO}

# Options whose default is refused, too, where somebody names it: recipes do otherwise
NOT_THE_DEFAULT = ("max_length", "logging_steps")

Condition = Callable[[Any, dict[str, Any], set[str]], bool]  # of a value, of all options, of the names of those given


class Refusal(NamedTuple):
    """Options that would be accepted and do nothing, or harm."""

    recipes: set[str]
    options: str  # their names
    message: str  # why; what to do instead
    when: Condition | None = None  # None: all values but the default


def is_in(*values: Any) -> Condition:
    return lambda value, *_: value in values


def while_not(option: str, *values: Any) -> Condition:
    """Another option has none of these values."""
    return lambda _, options, __: set(values).isdisjoint(listed(options[option]))


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def only_with(recipes: set[str], options: str, other: str, *values: Any) -> Refusal:
    """Options that do nothing until another has one of these values; they may stay where it is switched off by name."""

    def idle(_: Any, given: dict[str, Any], named: set[str]) -> bool:
        switched_off = other in named and given[other] in (False, "no")
        return not switched_off and set(values).isdisjoint(listed(given[other]))

    return Refusal(recipes, options, f"{other} is not {str(values[0]).lower()}; set that, or leave it out", idle)


def one_of(recipes: set[str], option: str, values: str) -> Refusal:
    """Any other value TRL would find out in training."""
    known = values.split()
    message = f"TRL knows no such value; choose of {', '.join(known)}"
    return Refusal(recipes, option, message, lambda value, *_: not set(known).issuperset(listed(value)))


def needs_package(options: str, package: str, remedy: str) -> Refusal:
    """Packages that are not among our own dependencies, or not to be had everywhere."""
    message = f"needs {package}, which is not installed; {remedy}, or unset it"
    return Refusal(ALL, options, message, lambda value, *_: value and find_spec(package) is None)


PPO_IGNORES = "TRL's PPOTrainer does not read it"
RESAMPLED = (
    "samples would come from another distribution than the one whose log-probabilities are trained; leave it out"
)
SAMPLERS = {"top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "do_sample", "num_beams", "temperature"}

# Where an option stands in several rows, the first that applies is said
# fmt: off
REFUSED = [Refusal(*row) for row in [
    needs_package("load_in_4bit load_in_8bit", "bitsandbytes", "pip install bitsandbytes"),
    needs_package("use_vllm", "vllm", "pip install '.[vllm]'"),
    needs_package("use_liger_kernel", "liger_kernel", "pip install liger-kernel"),

    # Rows, their tokens and their order
    (OFFLINE, "max_length truncation_mode",
     "prompts and replies are never cut; set max_prompt_tokens and max_completion_tokens"),
    (ALL, "dataset_text_field dataset_kwargs dataset_num_proc remove_unused_columns label_names length_column_name",
     "rows are tokenized once for all recipes, and trainers get their ids; leave it out"),
    ({SFT, DPO}, "packing packing_strategy padding_free eval_packing",
     "batches are of like length, which saves as much; leave it out"),
    ({SFT}, "completion_only_loss assistant_only_loss", "the loss is on completions only; leave it out"),
    ({GRPO}, "chat_template_kwargs", "the chat template is read with its defaults; set chat_template_path for SFT"),
    ({PPO}, "stop_token stop_token_id",
     "a reply ends where the chat template says; leave it out, or set eos_token when SFT trains"),
    (ALL, "data_seed", "one seed decides all of a run; set seed"),
    ({SFT, GRPO}, "shuffle_dataset", "rows are shuffled by seed; set train_sampling_strategy"),
    (ALL, "train_sampling_strategy", "trainers drop the lengths that it needs; set group_by_length or random",
     is_in("batch_rebalance")),
    (ONLINE, "train_sampling_strategy", "prompts are shuffled by seed; set group_by_length or random",
     is_in("sequential")),
    ({SFT}, "use_liger_kernel",
     "TRL then drops the lengths that group_by_length needs; set train_sampling_strategy: random",
     while_not("train_sampling_strategy", "random", "sequential")),
    (ALL, "auto_find_batch_size", "the size of a batch decides the result; "
     "lower per_device_train_batch_size and raise gradient_accumulation_steps"),
    (ALL, "per_device_train_batch_size gradient_accumulation_steps per_device_eval_batch_size",
     "there is no batch of that size; it must be at least 1", lambda value, *_: value < 1),
    (ONLINE, "dataloader_drop_last", "batches are always whole; leave it out"),
    (ONLINE, "accelerator_config", "processes share a batch out by whole groups; leave it out"),

    # Models
    (ALL, "model_init_kwargs sft_model_path",
     "recipes load the models; set model_name_or_path, model_revision, dtype and attn_implementation"),
    (ALL, "model_revision", "the model is a folder, which has one revision; leave it out",
     lambda _, options, __: Path(options["model_name_or_path"] or "nothing").is_dir()),
    (ALL, "load_in_4bit load_in_8bit",
     "a quantized model cannot be trained itself; set use_peft: true to train LoRA adapters on it",
     while_not("use_peft", True)),
    (ALL, "load_in_4bit load_in_8bit",
     "TRL trains the adapters of a quantized model in bfloat16; set dtype: bfloat16", while_not("dtype", "bfloat16")),
    ({PPO}, "load_in_8bit", "8 bits cannot be shared by value and reward model; set load_in_4bit"),
    only_with(ALL, "bnb_4bit_quant_type use_bnb_nested_quant bnb_4bit_quant_storage", "load_in_4bit", True),
    (ALL, "lora_task_type", "each recipe knows the task of its model; leave it out"),
    only_with(ALL, "lora_r lora_alpha lora_dropout lora_target_modules lora_target_parameters lora_modules_to_save "
              "use_rslora use_dora", "use_peft", True),
    ({REWARD, GRPO, DPO}, "lora_dropout", "dropout is off; set disable_dropout: false, or lora_dropout: 0.0",
     lambda value, options, _: value > 0 and options["disable_dropout"]),
    ({PPO}, "lora_dropout", "TRL's PPO has no dropout; set 0.0", lambda value, *_: value > 0),
    ({PPO}, "model_adapter_name ref_adapter_name",
     "the reference is the model that PPO starts from; set model_name_or_path"),
    (ALL, "use_cache", "what is trained on is read whole, and sampling has its cache anyway; leave it out"),
    (OFFLINE, "activation_offloading", "there is no accelerator to take activations from; leave it out",
     while_not("use_cpu", False)),
    ({DPO}, "use_liger_kernel sync_ref_model fsdp",
     "the reference is asked before training; set precompute_ref_log_probs: false",
     while_not("precompute_ref_log_probs", False)),
    (NOT_PPO, "fp16", "a CPU computes in 32 bits or in bfloat16; set bf16: true", while_not("use_cpu", False)),

    # Evaluation
    (ALL, "do_train do_eval do_predict", "recipes train; set eval_strategy"),
    (ONLINE, "eval_strategy eval_steps eval_delay eval_on_start num_generations_eval per_device_eval_batch_size",
     "a method that samples has no held-out loss; leave it out; make score evaluates on held-out prompts"),
    (ONLINE, "lr_scheduler_type", "it watches an evaluation; set another", is_in("reduce_lr_on_plateau", "greedy")),
    ({PPO}, "num_sample_generations",
     "it would sample for held-out prompts, and there are none; leave it out; make samples has samples",
     lambda value, *_: value > 0),
    only_with(OFFLINE, "eval_steps", "eval_strategy", "steps"),
    only_with(OFFLINE, "eval_delay eval_on_start", "eval_strategy", "steps", "epoch"),
    only_with({SFT, DPO}, "per_device_eval_batch_size", "eval_strategy", "steps", "epoch"),
    (ALL, "load_best_model_at_end greater_is_better metric_for_best_model",
     "the last weights are published, and eval_loss is what is watched; choose the number of steps by eval_loss"),
    (ALL, "save_strategy", "the last weights are published; set steps or epoch", is_in("best")),
    (ALL, "prediction_loss_only include_for_metrics batch_eval_metrics eval_accumulation_steps "
     "eval_do_concat_batches eval_use_gather_object", "an evaluation keeps nothing but losses; leave it out"),
    (ALL, "fp16_full_eval bf16_full_eval", "an evaluation computes as the training does; leave it out"),

    # Checkpoints, and what is logged and published
    (ALL, "resume_from_checkpoint",
     "a run finds its last checkpoint; run the same command again, and it goes on from there"),
    (ALL, "save_only_model ignore_data_skip restore_callback_states_from_checkpoint",
     "a killed run could not go on as it was; leave it out; a finished run keeps only models anyway"),
    (ALL, "enable_jit_checkpoint", "it stops in the middle of a step; lower save_steps, and kill the run"),
    (ALL, "save_on_each_node", "a run is one folder; set output_dir to a disk that all machines see"),
    (ALL, "push_to_hub hub_model_id hub_strategy hub_token hub_revision hub_private_repo hub_always_push "
     "log_completions_hub_repo",
     "what a trainer pushes is not what a run publishes; upload the finished folder: hf upload NAME FOLDER"),
    (ALL, "skip_memory_metrics", "its figures are logged nowhere; see manifest.json for the memory"),
    (ALL, "local_rank parallelism_config", "the launcher says that; set LAUNCH"),
    only_with(ALL, "project trackio_space_id trackio_bucket_id trackio_static_space_id", "report_to", "trackio", "all"),

    # Losses
    ({REWARD, GRPO, DPO}, "label_smoothing_factor average_tokens_across_devices",
     "the loss is not that of labels; leave it out; DPO has label_smoothing"),
    ({GRPO}, "include_num_input_tokens_seen", "TRL cannot count them here; see num_tokens"),
    ({GRPO}, "neftune_noise_alpha", "replies would be sampled with that noise; leave it out"),
    (ALL, "warmup_steps", "the learning rate is constant; set lr_scheduler_type: constant_with_warmup",
     lambda _, options, __: options["lr_scheduler_type"] == "constant"),
    (ALL, "optim_args",
     "the optimizer does not read it; set adam_beta1, adam_beta2, adam_epsilon and weight_decay",
     lambda _, options, __: options["optim"] in ("adamw_torch", "adamw_torch_fused", "adafactor")),
    (ALL, "optim_target_modules", "the optimizer takes all parameters; set optim to one of galore's or apollo's",
     lambda _, options, __: not options["optim"].startswith(("galore", "apollo"))),
    only_with({SFT}, "label_smoothing_factor", "loss_type", "nll"),
    only_with({DPO}, "label_smoothing", "loss_type", "exo_pair", "robust", "aot", "aot_unpaired"),
    only_with({DPO}, "discopop_tau", "loss_type", "discopop"),
    only_with({DPO}, "f_alpha_divergence_coef", "f_divergence_type", "alpha_divergence"),
    only_with({GRPO, DPO}, "ref_model_mixup_alpha ref_model_sync_steps", "sync_ref_model", True),
    only_with({GRPO}, "sapo_temperature_neg sapo_temperature_pos", "loss_type", "sapo"),
    only_with({GRPO}, "vespo_k_pos vespo_k_neg vespo_lambda_pos vespo_lambda_neg", "loss_type", "vespo"),
    only_with({GRPO}, "entropy_coef_min entropy_coef_max entropy_coef_delta entropy_target",
              "use_adaptive_entropy", True),
    one_of({DPO}, "loss_type", "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired "
           "apo_zero apo_down discopop sft sigmoid_norm"),
    one_of({DPO}, "f_divergence_type", "reverse_kl forward_kl js_divergence alpha_divergence"),
    one_of({GRPO}, "loss_type", "grpo dapo dr_grpo bnpo cispo sapo luspo vespo"),
    one_of({GRPO}, "importance_sampling_level", "token sequence"),
    one_of({GRPO}, "scale_rewards", "group batch none"),

    # Sampling
    (ONLINE, "temperature", "what is learned from must be sampled; temperature must be above 0",
     lambda value, *_: value <= 0),
    ({GRPO}, "top_p top_k min_p repetition_penalty", RESAMPLED),
    ({GRPO}, "generation_kwargs", RESAMPLED, lambda value, *_: any(f'"{name}"' in value for name in SAMPLERS)),
    ({GRPO}, "use_transformers_continuous_batching use_transformers_paged transformers_continuous_batching_config",
     "TRL casts the trained weights to 16 bits for it; set use_vllm: true to sample faster"),
    ({GRPO}, "multi_objective_aggregation max_tool_calling_iterations log_multimodal",
     "there is one reward, and there are no tools and images; leave it out"),
    only_with({GRPO}, "num_completions_to_print log_unique_prompts", "log_completions", True),
    only_with({GRPO}, "vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex "
              "vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_group_port "
              "vllm_max_model_length vllm_gpu_memory_utilization vllm_tensor_parallel_size "
              "vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_clip_max "
              "vllm_importance_sampling_clip_min vllm_importance_sampling_cap", "use_vllm", True),
    one_of({GRPO}, "vllm_importance_sampling_mode", "token_truncate token_mask sequence_truncate sequence_mask"),

    # PPO, whose trainer reads few of transformers' options
    ({PPO}, "world_size num_total_batches batch_size local_batch_size micro_batch_size mini_batch_size "
     "local_mini_batch_size", "TRL computes it; "
     "set per_device_train_batch_size, gradient_accumulation_steps, num_mini_batches and total_episodes"),
    ({PPO}, "max_steps", "PPO counts episodes; set total_episodes"),
    ({PPO}, "bf16", f"{PPO_IGNORES}; set dtype: bfloat16"),
    ({PPO}, "fp16", f"{PPO_IGNORES}; set dtype: float16"),
    ({PPO}, "deepspeed fsdp fsdp_config ds3_gather_for_generation",
     "PPO does not work with DeepSpeed and FSDP; set LAUNCH=ddp"),
    ({PPO}, "logging_steps logging_strategy", "TRL's PPO logs every batch; leave it out",
     lambda value, *_: value not in (1, "steps")),
    ({PPO}, "save_strategy", "PPO counts no epochs; set save_steps", is_in("epoch")),
    ({PPO}, "optim", "TRL's PPO does not call it as it must be called; set another",
     lambda value, *_: value.startswith(("schedule_free", "lomo", "adalomo"))),
    ({PPO}, "dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers "
     "dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor ddp_broadcast_buffers "
     "ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph debug full_determinism "
     "gradient_checkpointing_kwargs activation_checkpointing_kwargs log_level log_level_replica log_on_each_node "
     "logging_nan_inf_filter neftune_noise_alpha torch_compile torch_compile_backend torch_compile_mode "
     "torch_empty_cache_steps use_liger_kernel label_smoothing_factor average_tokens_across_devices "
     "include_num_input_tokens_seen", f"{PPO_IGNORES}; leave it out"),
]]
# fmt: on


def refusals(recipe: str, options: dict[str, Any], defaults: dict[str, Any], named: set[str]) -> Iterator[str]:
    """What is to be said against the options of a recipe.

    Args:
        options: all of them, with their values.
        defaults: the values that they have where nothing is said of them.
        named: those of which something is said.
    """
    for recipes, names, message, when in REFUSED:
        for name in names.split() if recipe in recipes else ():
            value = options.get(name)
            given = name in options and (value != defaults[name] or (name in NOT_THE_DEFAULT and name in named))
            if given and (when is None or when(value, options, named)):
                place = "" if message.startswith("needs ") else f"{f': {value}' if when else ''} has no place here:"
                yield f"{name}{place} {message}"
