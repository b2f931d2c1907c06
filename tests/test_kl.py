"""The sequence KL: exact given the sampled prefixes, and what is done where two models do not fit into memory."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from eval import kl
from eval.config import ScoreConfig
from eval.samples import sample
from eval.score import add_kl
from rlhf_trl.frame_loading import load_frame
from rlhf_trl.models import load_policy

EOS, LONGEST = 0, 3


def tiny(seed: int) -> LlamaForCausalLM:
    """Five tokens, and far from uniform."""
    torch.manual_seed(seed)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = LlamaConfig(vocab_size=5, initializer_range=0.5, **sizes, bos_token_id=None, eos_token_id=EOS)
    return LlamaForCausalLM(config).eval()


def all_replies() -> list[list[int]]:
    """Every reply of at most LONGEST tokens, of which only the last may be eos."""
    tokens = range(5)
    starts = [list(p) for n in range(LONGEST - 1) for p in itertools.product(tokens[1:], repeat=n)]
    finished = [[*start, EOS] for start in starts]
    return finished + [[*p, last] for p in itertools.product(tokens[1:], repeat=LONGEST - 1) for last in tokens]


def test_its_expectation_is_the_kl_of_whole_replies_and_none_is_negative():
    policy, reference, replies = tiny(0), tiny(1), all_replies()
    prompts = [[3, 1, 2]] * len(replies)
    ours, theirs = (np.array(kl.log_probabilities(model, prompts, replies)) for model in (policy, reference))
    assert np.exp(ours).sum() == pytest.approx(1, abs=1e-5)
    truth = (np.exp(ours) * (ours - theirs)).sum()
    values = np.array(kl.exact(policy, reference, prompts, replies))
    assert (np.exp(ours) * values).sum() == pytest.approx(truth, abs=1e-5)
    assert truth > 0.1 and values.min() >= 0
    assert kl.exact(policy, policy, prompts, replies) == [0.0] * len(replies)


def test_batches_and_parts_change_nothing(monkeypatch):
    policy, reference = tiny(0), tiny(1)
    prompts, replies = [[3], [1, 2, 4, 4, 1], [2, 2]], [[1, 2, EOS], [EOS], [4, 4]]
    together = kl.exact(policy, reference, prompts, replies), kl.log_probabilities(policy, prompts, replies)
    monkeypatch.setattr(kl, "LOGITS", 10)  # two tokens at a time
    for i in range(3):
        alone = prompts[i : i + 1], replies[i : i + 1]
        assert kl.exact(policy, reference, *alone) == pytest.approx([together[0][i]], abs=1e-5)
        assert kl.log_probabilities(policy, *alone) == pytest.approx([together[1][i]], abs=1e-5)


def test_the_temperature_is_that_of_the_policy():
    model, sharper = tiny(0), tiny(0)
    sharper.lm_head.weight.data *= 2  # as temperature 1/2 does
    ids = [[3, 1]] * 2, [[1, 2, EOS], [4, 4, 4]]
    values = kl.exact(model, model, *ids, temperature=0.5)
    assert values == pytest.approx(kl.exact(sharper, model, *ids), abs=1e-5) and min(values) > 0.01


@pytest.fixture(scope="module")
def models(world, tmp_path_factory):
    """Folders of a reference, a LoRA adapter on it and a model with other weights; prompts as texts and ids."""
    folder = tmp_path_factory.mktemp("kl")
    frame = load_frame(str(world / "gpt2"))

    def load(source: str):
        return load_policy(source, frame.tokenizer, "float32")

    torch.manual_seed(0)
    adapter = LoraConfig(r=4, init_lora_weights=False, target_modules=["c_attn"], task_type="CAUSAL_LM")
    get_peft_model(load(str(world / "gpt2")), adapter).save_pretrained(folder / "adapter")
    other = load(str(world / "gpt2"))
    for parameter in other.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    other.save_pretrained(folder / "other")
    frame.tokenizer.save_pretrained(folder / "other")
    prompts = [f"\n\nHuman: What colour has {thing}?" + end for thing in ("coal", "grass") for end in ("", " Hm.")]
    paths = {"reference": str(world / "gpt2"), "adapter": str(folder / "adapter"), "other": str(folder / "other")}
    return SimpleNamespace(**paths, frame=frame, load=load, prompts=prompts, ids=[*map(frame.prompt_ids, prompts)])


def test_an_adapter_on_and_off_is_two_models_in_memory(models):
    reference, again, adapted = map(models.load, (models.reference, models.reference, models.adapter))
    replies = sample(adapted, models.frame, models.ids, 8, seed=0)
    expected = kl.exact(adapted, again, models.ids, replies)
    with kl.beside(reference, models.reference, models.adapter, models.load) as policy:
        assert policy.get_base_model() is reference
        assert kl.exact(policy, reference, models.ids, replies) == pytest.approx(expected, abs=1e-5)
    assert min(expected) > 0.001
    assert kl.log_probabilities(reference, models.ids, replies) == kl.log_probabilities(again, models.ids, replies)


def test_both_estimates_agree_and_the_exact_one_spreads_less(models):
    reference, policy = map(models.load, (models.reference, models.adapter))
    prompts = models.ids * 50
    replies = sample(policy, models.frame, prompts, 8, seed=0)
    values = np.array(kl.exact(policy, reference, prompts, replies))
    ours, theirs = (np.array(kl.log_probabilities(model, prompts, replies)) for model in (policy, reference))
    ratios = ours - theirs
    error = (values - ratios).std(ddof=1) / len(prompts) ** 0.5
    assert values.mean() == pytest.approx(ratios.mean(), abs=3 * error)
    assert values.std() < ratios.std() / 3
    assert values.min() >= 0 > ratios.min()


def test_what_does_not_fit_is_estimated_one_model_after_the_other_and_named(models, monkeypatch, tmp_path):
    policies = [f"{name}={getattr(models, name)}" for name in ("reference", "adapter", "other")]
    config = ScoreConfig(output_dir=str(tmp_path), policies=policies, batch_size=3)
    temperatures = {"reference": 1.0, "colder/reference-0.5": 0.5, "adapter": 1.0, "other": 1.0, "greedy/other": 0.0}
    sampled = {
        name: {"model": getattr(models, name.rpartition("/")[2].partition("-")[0]), "temperature": temperature}
        | {"tokenizer": models.reference}
        for name, temperature in temperatures.items()
    }
    replies = [[5, 6, EOS], [7], [5, 5, 5], [8, EOS]]
    rows = [{"prompt": p, "completion_ids": ids} for p, ids in zip(models.prompts, replies, strict=True)]

    def found() -> tuple[dict, dict]:
        files = {name: [dict(row) for row in rows] for name in sampled}
        estimators = add_kl(files, sampled, config)
        return estimators, {name: [row["kl"] for row in rows] for name, rows in files.items()}

    named, values = found()
    assert named == dict.fromkeys(temperatures.keys() - {"greedy/other"}, "exact")
    assert values["reference"] == [0.0] * 4 and values["greedy/other"] == [None] * 4
    assert min(min(values[name]) for name in ("colder/reference-0.5", "adapter", "other")) > 0

    size = 4 * models.load(models.other).num_parameters()
    monkeypatch.setattr(kl, "free_memory", lambda _: 1.01 * size / kl.SHARE)
    assert found() == (named, values)
    monkeypatch.setattr(kl, "free_memory", lambda _: 0.99 * size / kl.SHARE)
    named, less = found()
    assert [name for name, how in named.items() if how == "sampled"] == ["other"]
    logps = [
        np.array(kl.log_probabilities(models.load(source), models.ids, replies))
        for source in (models.other, models.reference)
    ]
    assert less.pop("other") == pytest.approx(logps[0] - logps[1], abs=1e-4)
    assert less == {name: value for name, value in values.items() if name != "other"}
