"""Tiny untrained models whose tokenizers, templates and ends of a reply are those of families that people use."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
import trl
from tokenizers import (
    AddedToken,
    ByteLevelBPETokenizer,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
)

from tests.conftest import usable_pairs

CONTEXT = 256
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = LAYERS | {"num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
VISION = {"hidden_size": 32, "intermediate_size": 32}
SPARE = 40  # rows of an embedding that no token has
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
Parts = tuple[PreTrainedModel, PreTrainedTokenizerFast, dict]


def texts_of(world: Path) -> list[str]:
    """The dialogues of the small demo world, to train tokenizers on."""
    return [
        row["prompt"] + row[side] for row in usable_pairs(world / "data", "train") for side in ("chosen", "rejected")
    ]


def byte_bpe(texts: Iterable[str], specials: list[str], **named: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE as GPT-2's; `named` are its eos, pad and so on."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=500, special_tokens=specials, show_progress=False)
    return _wrap(bpe._tokenizer, specials, named)


def sentencepiece_like(texts: Iterable[str], specials: list[str], layout: str, **named: str) -> PreTrainedTokenizerFast:
    """A BPE with byte fallback whose spaces are "▁": written before every text (`legacy`, by the normalizer), before
    the first part or each part between special tokens (`first`, `always`), or nowhere (`never`)."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if layout == "legacy":
        bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        bpe.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=layout, split=False)
    start = [] if layout == "never" else [decoders.Strip(" ", 1, 0)]
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *start],
    )
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *specials, *BYTES], show_progress=False)
    bpe.train_from_iterator((" ".join(text.split()) for text in texts), trainer)
    content = json.loads(bpe.to_str())  # where bytes are special tokens, as only so the trainer takes them
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in BYTES]
    return _wrap(Tokenizer.from_str(json.dumps(content)), specials, {"unk_token": "<unk>"} | named)


def build(name: str, folder: Path, texts: list[str]) -> Path:
    """Write the model of that name to `folder`, with its tokenizer and generation settings."""
    torch.manual_seed(0)
    model, tokenizer, settings = ZOO[name](texts)
    model.generation_config = GenerationConfig(**settings)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _llama3(texts: list[str]) -> Parts:
    """Template and tokenizer both write bos."""
    bos, *others = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    named = {"bos_token": bos, "eos_token": "<|eot_id|>", "pad_token": "<|pad|>"}
    tokenizer = _adding_bos(byte_bpe(texts, [bos, *others, "<|pad|>"], **named))
    tokenizer.chat_template = _template("llama3_2")
    ends = tokenizer.convert_tokens_to_ids(others[:2])
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, **SIZES)
    return LlamaForCausalLM(config), tokenizer, {"eos_token_id": ends}


def _qwen2_5_base(texts: list[str]) -> Parts:
    """Its template ends turns in another token than its eos, which is its pad, too."""
    tokenizer = byte_bpe(texts, QWEN, eos_token=QWEN[0], pad_token=QWEN[0])
    tokenizer.chat_template = _template("qwen2_5")
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.eos_token_id}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer) + SPARE, **ids, **SIZES)), tokenizer, ids


def _qwen2_5_instruct(texts: list[str]) -> Parts:
    """Its pad is one of several ends, and its generation settings ask for more than ends."""
    tokenizer = byte_bpe(texts, QWEN, eos_token=QWEN[2], pad_token=QWEN[0])
    tokenizer.chat_template = _template("qwen2_5")
    config = Qwen2Config(
        vocab_size=len(tokenizer) + SPARE, bos_token_id=0, eos_token_id=tokenizer.eos_token_id, **SIZES
    )
    pad = tokenizer.pad_token_id
    settings = {"eos_token_id": [tokenizer.eos_token_id, pad], "pad_token_id": pad, "repetition_penalty": 1.1}
    return Qwen2ForCausalLM(config), tokenizer, settings


def _qwen3_5(texts: list[str]) -> Parts:
    """A config with a text config in it, a template that thinks, and layers of linear attention."""
    tokenizer = byte_bpe(texts, QWEN, eos_token=QWEN[2], pad_token=QWEN[0])
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = _template("qwen3_5_think")
    text = SIZES | {"num_hidden_layers": 4, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 2}
    text |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16}
    text |= {"vocab_size": len(tokenizer) + SPARE, "eos_token_id": tokenizer.eos_token_id}
    config = Qwen3_5Config(
        text_config=text, vision_config=VISION | {"depth": 1, "num_heads": 2, "out_hidden_size": LAYERS["hidden_size"]}
    )
    settings = {"eos_token_id": [tokenizer.eos_token_id, tokenizer.pad_token_id]}
    return Qwen3_5ForConditionalGeneration(config), tokenizer, settings


def _gemma3(texts: list[str]) -> Parts:
    """Its tokenizer's eos is not what its template ends turns in."""
    tokenizer, ids, ends = _gemma3_tokenizer(texts)
    model = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=len(tokenizer), head_dim=16, **ids, **SIZES))
    return model, tokenizer, {"eos_token_id": ends, "do_sample": True, "top_k": 64, "top_p": 0.95}


def _gemma3_nested(texts: list[str]) -> Parts:
    """As it comes with a vision tower."""
    tokenizer, ids, ends = _gemma3_tokenizer(texts)
    vision = VISION | {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    text = {"vocab_size": len(tokenizer), "head_dim": 16, **ids, **SIZES}
    config = Gemma3Config(text_config=text, vision_config=vision)
    return Gemma3ForConditionalGeneration(config), tokenizer, {"eos_token_id": ends}


def _gemma3_tokenizer(texts: list[str]) -> tuple[PreTrainedTokenizerFast, dict, list[int]]:
    specials = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    named = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    tokenizer = _adding_bos(sentencepiece_like(texts, specials, "never", **named))
    tokenizer.chat_template = _template("gemma3")
    ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "bos_token_id", "pad_token_id")}
    return tokenizer, ids, tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])


def _mistral(texts: list[str]) -> Parts:
    """No pad token, and a template that refuses roles that do not alternate."""
    tokenizer = _adding_bos(sentencepiece_like(texts, ["<s>", "</s>"], "legacy", bos_token="<s>", eos_token="</s>"))
    tokenizer.chat_template = MISTRAL
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return MistralForCausalLM(MistralConfig(vocab_size=len(tokenizer), **ids, **SIZES)), tokenizer, ids


def _gpt2(texts: list[str]) -> Parts:
    """One special token for everything, and no template."""
    token = "<|endoftext|>"
    tokenizer = byte_bpe(texts, [token], bos_token=token, eos_token=token, unk_token=token)
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2, **ids)
    return GPT2LMHeadModel(config), tokenizer, ids


def _gpt_neox(texts: list[str]) -> Parts:
    """Runs of spaces are added tokens."""
    end, pad = "<|endoftext|>", "<|padding|>"
    tokenizer = byte_bpe(texts, [end, pad], bos_token=end, eos_token=end, unk_token=end, pad_token=pad)
    tokenizer.add_tokens([AddedToken(" " * count, normalized=True) for count in (2, 4)])
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    config = GPTNeoXConfig(vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, **ids, **LAYERS)
    return GPTNeoXForCausalLM(config), tokenizer, ids


ZOO = {
    "llama3": _llama3,
    "qwen2.5-base": _qwen2_5_base,
    "qwen2.5-instruct": _qwen2_5_instruct,
    "qwen3.5": _qwen3_5,
    "gemma3": _gemma3,
    "gemma3-nested": _gemma3_nested,
    "mistral": _mistral,
    "gpt2": _gpt2,
    "gpt-neox": _gpt_neox,
}
PADS = {"mistral": "<unk>", "gpt2": "<|pad|>"}  # pad_token for those that have none


def _wrap(bpe: Tokenizer, specials: list[str], named: dict[str, str]) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=CONTEXT, **named)
    others = [token for token in specials if token not in named.values()]
    tokenizer.add_special_tokens({"additional_special_tokens": others})
    return tokenizer


def _adding_bos(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    bos = tokenizer.bos_token
    adding = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)])
    own = tokenizer.backend_tokenizer.post_processor
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([*([own] if own else []), adding])
    return tokenizer


def _template(name: str) -> str:
    return (Path(trl.__file__).parent / f"chat_templates/{name}.jinja").read_text()
