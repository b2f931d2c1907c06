"""Models as every recipe and the evaluation load them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftModel,
    get_peft_model,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import deepspeed
from trl import ModelConfig, get_peft_config, get_quantization_config
from trl.trainer.reward_trainer import suppress_seqcls_warning

from rlhf_trl.errors import UserError


def load_options(model: ModelConfig) -> dict:
    """How a config wants models loaded: dtype, attention and quantization, as `from_pretrained` takes them."""
    options = {
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation,
        "quantization_config": get_quantization_config(model),
    }
    return {name: value for name, value in options.items() if value is not None}


def load_policy(source: str, tokenizer: PreTrainedTokenizerBase, dtype: str) -> PreTrainedModel | PeftModel:
    """A policy to sample from, full model or adapter, in eval mode, with clean generation settings.

    The base of a policy may lack the pad token that `tokenizer` has; it gets room for it.
    """
    adapter = (Path(source) / "adapter_config.json").exists()
    policy = (AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM).from_pretrained(source, dtype=dtype)
    if len(tokenizer) > policy.get_input_embeddings().num_embeddings:
        policy.resize_token_embeddings(len(tokenizer))
    policy.generation_config = GenerationConfig()
    return policy.eval()


def load_causal_lm(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A causal LM, quantized if configured, whose generation settings are only eos and pad.

    Whatever else a model's own generation config asks for (a repetition penalty, top-p) would make
    samples come from another distribution than the one whose log-probabilities training computes.
    """
    lm = AutoModelForCausalLM.from_pretrained(_source(model), **load_options(model), revision=model.model_revision)
    return _fit(lm, tokenizer)


def load_sequence_classifier(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model with one score per sequence, read at the last token before the padding."""
    with suppress_seqcls_warning():
        classifier = AutoModelForSequenceClassification.from_pretrained(
            _source(model), num_labels=1, **load_options(model), revision=model.model_revision
        )
    return _fit(classifier, tokenizer)


def lora(model: ModelConfig, task_type: str) -> LoraConfig | None:
    """The LoRA settings of a config for `CAUSAL_LM` or `SEQ_CLS`; None for full fine-tuning."""
    peft_config = get_peft_config(model)
    if peft_config is not None:
        peft_config.task_type = task_type
        peft_config.revision = model.model_revision  # of the base, for whoever loads the adapter
    return peft_config


def inject_lora(model: PreTrainedModel, peft_config: LoraConfig) -> PreTrainedModel:
    """Put trainable LoRA layers into `model` and freeze the rest, keeping the model's own class."""
    return get_peft_model(model, peft_config).get_base_model()


def keep_gradients(model: PreTrainedModel) -> PreTrainedModel:
    """Stop bitsandbytes from repacking 4-bit weights when they are first used in eval mode on a CPU with AVX512-BF16:
    packed ones pass no gradients on, to an adapter that is trained after sampling, or that shares them."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def load_merged(
    folder: Path, task_type: str, tokenizer: PreTrainedTokenizerBase, model: ModelConfig
) -> PreTrainedModel:
    """A trained model; an adapter is merged into the weights that it was trained on, unquantized, because merging
    into 4-bit weights would round it away. `task_type` is `CAUSAL_LM` or `SEQ_CLS`."""
    adapter = (folder / "adapter_config.json").exists()
    if task_type == "CAUSAL_LM":
        loader, options = (AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM), {}
    else:
        loader = AutoPeftModelForSequenceClassification if adapter else AutoModelForSequenceClassification
        options = {"num_labels": 1}
    with suppress_seqcls_warning(), whole_weights():
        trained = loader.from_pretrained(folder, dtype=model.dtype, **options)
        return _fit(trained.merge_and_unload() if adapter else trained, tokenizer)


@contextmanager
def whole_weights() -> Iterator[None]:
    """For loading a model that the trainer does not get: under DeepSpeed's ZeRO-3, transformers would leave each
    process a share of any model's weights."""
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def check_context(model: ModelConfig, prompt_tokens: int, completion_tokens: int) -> None:
    """Refuse prompts and completions that together outgrow the model's positions.

    Raises:
        UserError: the longest sequence does not fit.
    """
    config = AutoConfig.from_pretrained(model.model_name_or_path, revision=model.model_revision)
    context = config.max_position_embeddings
    if prompt_tokens + completion_tokens > context:
        raise UserError(
            f"prompts of {prompt_tokens} tokens and completions of {completion_tokens} do not fit the context of "
            f"{context} tokens of {model.model_name_or_path}; lower max_prompt_tokens or the completion length"
        )


def is_reward_model(folder: str) -> bool:
    """Whether a folder holds a reward model of ours: one label and the scale of its scores."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text())
    except (OSError, ValueError):
        return False
    return "reward_std" in config and any("SequenceClassification" in name for name in config["architectures"])


def device() -> torch.device:
    """This process's accelerator if there is one, else the CPU."""
    return PartialState().device


def _source(model: ModelConfig) -> str:
    # peft writes this name into the adapter's config; an absolute path can be loaded from anywhere
    name = model.model_name_or_path
    return os.path.abspath(name) if Path(name).is_dir() else name


def _fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return keep_gradients(model)
