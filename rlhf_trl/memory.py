"""How much memory a recipe needs, found out without having it.

A recipe's models are built without data, on torch's fake tensors, and go through what takes the most: a training step
on the longest rows, and a rollout where there is one. What is alive at a time is added up.
"""

import copy
import weakref
from typing import Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig, TrainingArguments
from transformers.pytorch_utils import Conv1D
from trl import ModelConfig
from trl.experimental.ppo.ppo_trainer import PolicyAndValueWrapper
from trl.trainer.reward_trainer import suppress_seqcls_warning
from trl.trainer.sft_trainer import _CHUNKED_LM_HEAD_CHUNK_SIZE, _chunk
from trl.trainer.utils import disable_dropout_in_model, entropy_from_logits, selective_log_softmax

from rlhf_trl.config import RECIPES
from rlhf_trl.models import lora
from rlhf_trl.ppo import value_model_of
from rlhf_trl.rewards import StandardisedHead

# On a CPU, glibc keeps tensors below HEAP_TENSOR bytes in its heap and hardly uses again what they leave there, so that
# they take HEAP times what is alive (measured). With gradient checkpointing, where it is worse, recipes prevent it.
HEAP_TENSOR, HEAP = 32 * 2**20, 1.8


class MemoryNeed(NamedTuple):
    """What one process of a recipe needs, in bytes, and the parameters of all its models."""

    parameters: int
    trainable: int
    process: int  # the libraries
    weights: int
    gradients: int
    optimizer: int
    activations: int  # all that comes and goes with a batch: logits, sampled scores and key-value cache, too

    @property
    def total(self) -> int:
        return self.process + self.weights + self.gradients + self.optimizer + self.activations


def estimate(
    recipe: str, config: PreTrainedConfig, model: ModelConfig, args: TrainingArguments, longest: int, process: int
) -> MemoryNeed:
    """The peak of a recipe's memory.

    Args:
        config: the base model's, with the vocabulary of its tokenizer.
        longest: tokens of the longest prompt (`ppo`, `grpo`), or of the longest prompt and reply (the others).
        process: bytes that a process takes before it loads a model; 0 on a GPU.
    """
    models = build(recipe, config, model, args)
    parameters = {id(p): p for part in models.values() for p in part.parameters()}.values()  # shared ones once
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    trainable, gradients = sum(p.numel() for p in trained), sum(p.nbytes for p in trained)
    saved = _saved_by_quantization(models, model)
    weights = sum(p.nbytes for p in parameters) - saved
    with FakeTensorMode(allow_non_fake_inputs=True):
        activations = peak(recipe, models, args, longest)
    moments = 2 * (trainable if "8bit" in args.optim else gradients)  # AdamW's
    if recipe == "reward" or (recipe == "sft" and args.device.type == "cpu"):  # SFT merges there
        # At the end there is the merged model, unquantized and alone
        activations = max(activations, saved - gradients - moments)
    count = sum(p.numel() for p in parameters)
    return MemoryNeed(count, trainable, process, weights, gradients, moments, activations)


def build(recipe: str, config: PreTrainedConfig, model: ModelConfig, args: TrainingArguments) -> dict[str, nn.Module]:
    """A recipe's models by name, on the meta device, as the recipe and TRL's trainer set them up."""
    trained = list(RECIPES[recipe].trains)
    others, others_with_lora = RECIPES[recipe].holds, RECIPES[recipe].holds_with_lora
    if not getattr(args, "precompute_ref_log_probs", True):
        others = ("reference",)
    config = copy.deepcopy(config)
    config.num_labels, config.pad_token_id = 1, 0
    if args.device.type != "cpu":  # whose attention alone would keep whole matrices for dropout
        config.attn_pdrop = config.attention_dropout = 0.0
    dtype = config.dtype if model.dtype in (None, "auto") else getattr(torch, model.dtype)
    models = {}
    with torch.device("meta"), suppress_seqcls_warning():
        for name in [*trained, *(others_with_lora if model.use_peft else others)]:
            kind = AutoModelForSequenceClassification if name in ("reward", "value") else AutoModelForCausalLM
            models[name] = kind.from_config(config, dtype=dtype, trust_remote_code=model.trust_remote_code)
        if recipe == "ppo":
            models["reward"].score = StandardisedHead(models["reward"].score, mean=0.0, std=1.0)
            models["value"] = value_model_of(models["reward"], lora(model, "SEQ_CLS"))
        if model.use_peft:
            task = "SEQ_CLS" if recipe == "reward" else "CAUSAL_LM"
            models[trained[0]] = get_peft_model(models[trained[0]], lora(model, task))
    if getattr(args, "beta", None) == 0:
        models.pop("reference", None)
    for name, part in models.items():
        if recipe == "ppo" or getattr(args, "disable_dropout", False):
            disable_dropout_in_model(part)
        if name not in trained:
            part.requires_grad_(False)
        elif args.gradient_checkpointing:
            part.gradient_checkpointing_enable()
            part.enable_input_require_grads()
    return models


def peak(recipe: str, models: dict[str, nn.Module], args: TrainingArguments, longest: int) -> int:
    """Bytes of all that comes and goes with a batch, at their most. `models` are those of `build`."""
    rows = args.per_device_train_batch_size * (2 if recipe in ("reward", "dpo") else 1)  # both replies
    response = getattr(args, {"ppo": "response_length", "grpo": "max_completion_length"}.get(recipe, ""), 0)
    for part in models.values():
        part.to_empty(device="cpu")  # attention on meta tensors would not take the path that saves memory
        for parameter in part.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    with LiveBytes(models, args.device) as training:
        held = train_step(recipe, models, args, torch.zeros(rows, longest + response, dtype=torch.long), response)
    step = training.peak + training.live  # what is held stays while the next step runs
    del held
    if not response:
        return step

    batch = rows * args.gradient_accumulation_steps
    sampled = min(args.local_rollout_forward_batch_size, batch) if recipe == "ppo" else rows * args.steps_per_generation
    # PPO takes the logits of whole sequences under the reference, too
    outputs = {"output_hidden_states": True} if recipe == "ppo" else {"logits_to_keep": 1}
    with LiveBytes(models, args.device) as rollout, torch.no_grad():
        ids = torch.zeros(sampled, longest + response, dtype=torch.long)
        models["policy"].eval()(input_ids=ids, use_cache=True, **outputs)
    if recipe == "grpo":
        return max(step, rollout.peak)
    # TRL keeps the scores that a batch was sampled from until it has those of the next one, and a padded copy of these
    scores = batch * response * models["policy"].config.vocab_size * torch.float32.itemsize
    return scores + max(2 * scores, scores + rollout.peak, step)


def train_step(
    recipe: str, models: dict[str, nn.Module], args: TrainingArguments, ids: torch.Tensor, response: int
) -> Any:
    """What TRL's trainers compute of a micro-batch, forward and back, as far as it takes memory. Returns what they hold
    until they have the same of the next one."""
    model = models["reward" if recipe == "reward" else "policy"].train()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=args.bf16):
        if recipe == "sft":
            inner = model.get_base_model() if isinstance(model, PeftModel) else model
            hidden = inner.base_model(**inputs, use_cache=False).last_hidden_state.flatten(0, 1)
            head, chunk = inner.get_output_embeddings().weight, slice(_CHUNKED_LM_HEAD_CHUNK_SIZE)
            loss = checkpoint(_chunk, hidden[chunk], head, None, ids.flatten()[chunk], 1, None, use_reentrant=False)[0]
        elif recipe == "reward":
            loss = model(**inputs, use_cache=False).logits.sum()
        elif recipe == "ppo":
            output, values = PolicyAndValueWrapper(model, models["value"].train())(**inputs, output_hidden_states=True)
            logits = output.logits[:, -response - 1 : -1]
            logits /= args.temperature
            loss = selective_log_softmax(logits, ids[:, -response:]).sum() + values.sum()
        else:
            keep = {"logits_to_keep": response + 1} if recipe == "grpo" else {}
            logits = model(**inputs, use_cache=False, **keep).logits.float()[:, :-1]
            if recipe == "grpo":
                logits = logits / args.temperature
            loss = selective_log_softmax(logits, ids[:, -logits.size(1) :]).sum()
            entropy_from_logits(logits.detach())
    loss.backward()
    return (output, logits.detach().softmax(-1)) if recipe == "ppo" else None


class LiveBytes(TorchDispatchMode):
    """Adds up the bytes of what is computed within it, while they are alive; `peak` is the most that a process on
    `device` takes for them. Models and gradients that are there before do not count."""

    def __init__(self, models: dict[str, nn.Module], device: torch.device) -> None:
        super().__init__()
        self.heap = HEAP if device.type == "cpu" else 1
        tensors = [tensor for part in models.values() for tensor in (*part.parameters(), *part.buffers())]
        tensors += [tensor.grad for tensor in tensors if tensor.grad is not None]
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in tensors}
        self.live = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self.sizes:
                size = tensor.untyped_storage().nbytes()
                self.sizes[key] = round(size * (self.heap if size < HEAP_TENSOR else 1))
                self.live += self.sizes[key]
                weakref.finalize(tensor.untyped_storage(), self._forget, key)
        self.peak = max(self.peak, self.live)
        return result

    def _forget(self, key: int) -> None:
        self.live -= self.sizes.pop(key)


def _saved_by_quantization(models: dict[str, nn.Module], model: ModelConfig) -> int:
    """Bytes by which quantized weights are smaller: bitsandbytes quantizes all linear layers but the head."""
    if not (model.load_in_4bit or model.load_in_8bit):
        return 0
    bits = 8 if model.load_in_8bit else 4.127 if model.use_bnb_nested_quant else 4.5  # with the scales of its blocks
    heads = [part.get_output_embeddings() for part in models.values()]
    layers = [m for part in models.values() for m in part.modules() if isinstance(m, (nn.Linear, Conv1D))]
    weights = {id(m.weight): m.weight for m in layers if not (m in heads or m.weight.requires_grad)}.values()
    return sum(round(weight.numel() * (weight.itemsize - bits / 8)) for weight in weights)
