"""Models as every recipe and the evaluation load them."""

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import deepspeed
from transformers.pytorch_utils import Conv1D
from trl import ModelConfig, get_peft_config, get_quantization_config
from trl.trainer.reward_trainer import suppress_seqcls_warning

from rlhf_trl.errors import UserError, work
from rlhf_trl.frames import Frame
from rlhf_trl.hub import lineage

KINDS = {"CAUSAL_LM": AutoModelForCausalLM, "SEQ_CLS": AutoModelForSequenceClassification}


def load_options(model: ModelConfig) -> dict:
    """How a config wants models loaded: dtype, attention, quantization and trust, as `from_pretrained` takes them."""
    options = {name: getattr(model, name) for name in ("dtype", "attn_implementation", "trust_remote_code")}
    options["quantization_config"] = get_quantization_config(model)
    return {name: value for name, value in options.items() if value is not None}


def load(
    source: str,
    task_type: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    revision: str = "main",
    merge: bool = True,
    new_head: bool = False,
    **options,
) -> PreTrainedModel | PeftModel:
    """A model folder, hub model or adapter, with room for all tokens of `tokenizer`.

    Args:
        task_type: `CAUSAL_LM`, or `SEQ_CLS` for one score a sequence, read at the last token before the padding.
        merge: merge an adapter into its model; one that another stands on is merged anyway.
        new_head: let the head of a sequence classifier be new, if there is none.
        options: go to `from_pretrained`.

    Raises:
        UserError: weights are missing, an adapter does not fit its base, which has moved, or is to be quantized.
    """
    *adapters, (name, base_revision) = lineage(source, revision)
    if adapters and options.get("quantization_config"):
        raise UserError(
            f"{source} is an adapter, which cannot be merged into quantized weights; merge it yourself and name the "
            "result, or do not quantize"
        )
    model = _load_whole(name, task_type, new_head or bool(adapters), revision=base_revision, **options)
    _make_room(model, tokenizer)
    for adapter, adapter_revision in reversed(adapters):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")
            try:
                model = PeftModel.from_pretrained(model, adapter, revision=adapter_revision)
            except UserWarning as error:
                raise UserError(f"the adapter {adapter} does not fit {name}; name the model it was made on") from error
        if merge or adapter != source:
            model = model.merge_and_unload().requires_grad_(True)  # peft froze it
            model.name_or_path = model.config._name_or_path = adapter  # which an adapter on it records as its base
    return model


def _load_whole(name: str, task_type: str, new_head: bool, **options) -> PreTrainedModel:
    labels = {"num_labels": 1} if task_type == "SEQ_CLS" else {}
    with suppress_seqcls_warning() if new_head else nullcontext():
        model, read = KINDS[task_type].from_pretrained(name, **labels, **options, output_loading_info=True)
    heads = model.config.architectures or []
    if task_type == "CAUSAL_LM" and any("ForSequenceClassification" in head for head in heads):
        raise UserError(f"{name} holds a reward model, which cannot write; name a language model")
    body = f"{model.base_model_prefix}."
    missing = [part for part in read["missing_keys"] if part.startswith(body) or not new_head]
    if missing:  # they would be random
        raise UserError(f"{name} lacks the weights {min(missing)}; it is another kind of model, or damaged")
    return model


def _make_room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))


def load_policy(
    source: str, tokenizer: PreTrainedTokenizerBase, dtype: str, trust_remote_code: bool = False
) -> PreTrainedModel | PeftModel:
    """A policy to sample from, full model or adapter, in eval mode, with clean generation settings."""
    options = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    policy = load(source, "CAUSAL_LM", tokenizer, merge=False, **options)
    policy.generation_config = GenerationConfig()
    return policy.eval()


def load_start(model: ModelConfig, task_type: str, frame: Frame) -> PreTrainedModel:
    """The model that a recipe starts from, quantized if configured, an adapter merged.

    Its generation settings are only where a reply ends, and pad. Whatever else a model's own ask for (a repetition
    penalty, top-p) would make samples come from another distribution than the one whose log-probabilities training
    computes.

    Raises:
        UserError: it has no part of a name in `lora_modules_to_save` or `lora_target_parameters`.
    """
    source = model.model_name_or_path
    if Path(source).is_dir():  # adapters record it, and are loaded from other folders
        source = os.path.abspath(source)
    options = load_options(model) | {"revision": model.model_revision, "new_head": task_type == "SEQ_CLS"}
    start = load(source, task_type, frame.tokenizer, **options)
    named = {"lora_modules_to_save": start.named_modules(), "lora_target_parameters": start.named_parameters()}
    for option, parts in named.items():  # peft skips names that it does not find
        there = [f".{name}" for name, _ in parts]
        for name in getattr(model, option) or ():
            if not any(part.endswith(f".{name}") for part in there):
                raise UserError(f"{option}: {source} has no {name}; leave it out, or name a part that it has")
    return align_special_tokens(start, frame)


@work
def load_merged(folder: Path, task_type: str, frame: Frame, model: ModelConfig) -> PreTrainedModel:
    """A trained model; an adapter is merged into the weights that it was trained on, unquantized, because merging
    into 4-bit weights would round it away. `task_type` is `CAUSAL_LM` or `SEQ_CLS`."""
    options = {"dtype": model.dtype, "trust_remote_code": model.trust_remote_code}
    with without_zero3_sharding():
        return align_special_tokens(load(str(folder), task_type, frame.tokenizer, **options), frame)


def load_stacked(folder: Path, frame: Frame, model: ModelConfig) -> PreTrainedModel | None:
    """A trained policy merged into one model, if it is an adapter on an adapter: peft alone cannot load that. Else
    None."""
    return load_merged(folder, "CAUSAL_LM", frame, model) if len(lineage(str(folder))) > 2 else None


def align_special_tokens(model: PreTrainedModel, frame: Frame) -> PreTrainedModel:
    """Give a model the pad token, the ends and the vocabulary of the frame that it is to read and write in."""
    _make_room(model, frame.tokenizer)
    for config in {id(config): config for config in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = frame.tokenizer.pad_token_id
        config.eos_token_id = frame.end[-1]
    model.generation_config = frame.generation_config()
    return disable_bnb_weight_packing(model)


def lora(model: ModelConfig, task_type: str) -> LoraConfig | None:
    """The LoRA settings of a config for `CAUSAL_LM` or `SEQ_CLS`; None for full fine-tuning."""
    peft_config = get_peft_config(model)
    if peft_config is not None:
        peft_config.task_type = task_type
        if isinstance(peft_config.target_modules, str) and peft_config.target_modules.isidentifier():
            peft_config.target_modules = {peft_config.target_modules}  # TRL made a regular expression of a list of one
        peft_config.revision = model.model_revision  # of the base, for whoever loads the adapter
    return peft_config


def disable_bnb_weight_packing(model: PreTrainedModel) -> PreTrainedModel:
    """Keep bitsandbytes from packing 4-bit weights for a CPU with AVX512-BF16 when they are first used in eval mode.

    No gradient passes through packed weights, and an adapter may be trained on them after that.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


@contextmanager
def without_zero3_sharding() -> Iterator[None]:
    """Load models whole under DeepSpeed's ZeRO-3. transformers would leave each process a share of the weights, with
    which only the trainer can do anything."""
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def read_config(model: ModelConfig) -> PreTrainedConfig:
    """The config of the model that a recipe starts from, or of the one under its adapters."""
    source, revision = lineage(model.model_name_or_path, model.model_revision)[-1]
    return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=model.trust_remote_code)


def check_context(model: ModelConfig, prompt_tokens: int, completion_tokens: int) -> None:
    """Refuse prompts and completions that together outgrow the positions of the model that a recipe starts from.

    Raises:
        UserError: the longest sequence does not fit.
    """
    check_positions(read_config(model), model.model_name_or_path, prompt_tokens, completion_tokens)


def check_positions(config: PreTrainedConfig, source: str, prompt_tokens: int, completion_tokens: int) -> None:
    """The same for any model, by its config."""
    if prompt_tokens + completion_tokens > positions(config):
        raise UserError(
            f"prompts of {prompt_tokens} tokens and completions of {completion_tokens} do not fit the context of "
            f"{positions(config)} tokens of {source}; lower max_prompt_tokens or the completion length"
        )


def positions(config: PreTrainedConfig) -> float:
    """Tokens that a model can read; infinite where its config names no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf


def check_architecture(model: ModelConfig) -> None:
    """Find out, before SFT trains, whether a reward model can be made of it and LoRA finds its layers.

    Raises:
        UserError: no sequence classifier for the architecture, or no layers of the names in `lora_target_modules`.
    """
    config = read_config(model)
    own = getattr(config, "auto_map", {}).get("AutoModelForSequenceClassification")
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and not own:
        raise UserError(
            f"transformers has no sequence classifier for {config.model_type}, which the reward model would be; "
            "choose a model of another architecture"
        )
    if model.use_peft:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
        try:
            get_peft_model(empty, lora(model, "CAUSAL_LM"))
        except ValueError as error:
            kinds = (torch.nn.Linear, Conv1D)
            linear = {name.rpartition(".")[2] for name, part in empty.named_modules() if isinstance(part, kinds)}
            raise UserError(
                f"LoRA does not fit {model.model_name_or_path} ({error}); set lora_target_modules to some of "
                f"{', '.join(sorted(linear))}, or to all-linear"
            ) from error


def device() -> torch.device:
    """This process's accelerator if there is one, else the CPU."""
    return PartialState().device
