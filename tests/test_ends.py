"""Where a reply ends: any end that the model's settings name counts as one, in training and sampling; and the options
that say what is written around a reply."""

from datetime import datetime
from types import SimpleNamespace

import datasets
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GenerationMixin
from transformers.utils import chat_template_utils
from trl import SFTTrainer

from eval.samples import sample
from rlhf_trl import rewards
from rlhf_trl import run as runs
from rlhf_trl.files import read_jsonl
from rlhf_trl.frame_loading import load_frame
from rlhf_trl.models import load_policy
from rlhf_trl.ppo import CorrectedPPOTrainer
from tests.conftest import settings
from tests.test_resume import attempt, in_step
from tests.zoo import PADS, build, texts_of

LIMITS = {"max_prompt_tokens": 160, "max_completion_tokens": 60}
PENALTY = 3.0
DIALOGUES = [f"\n\nHuman: What colour has {thing}?\n\nAssistant:" for thing in ("grass", "snow", "a long coal", "mud")]
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture(autouse=True, scope="module")
def no_plots():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "plot_curves", lambda *_: None)  # which takes most of the time of so short a run
        yield


@pytest.fixture(scope="module")
def zoo(world, tmp_path_factory):
    """Folder of a model by its name, built when it is first asked for."""
    texts, folder = texts_of(world), tmp_path_factory.mktemp("zoo")
    return lambda name: folder / name if (folder / name).exists() else build(name, folder / name, texts)


@pytest.fixture(scope="module")
def gemma(zoo, world, tmp_path_factory):
    """A profile with its SFT and reward model: turns end in <end_of_turn>, and <eos> is an end, too."""
    folder = tmp_path_factory.mktemp("gemma")
    for recipe in ("sft", "reward"):
        base = {"model_name_or_path": str(zoo("gemma3"))} if recipe == "sft" else {}
        attempt(recipe, settings(folder, recipe, world, **base, **LIMITS))
    return folder


@pytest.fixture
def rollouts(gemma, monkeypatch):
    """What is sampled is given: four replies of six tokens in turn, with something behind their first end. Records the
    ids `sampled`, up to there, and whether they `finished`; those `scored`, with their scores; and the rewards."""
    frame = load_frame(str(gemma / "sft"))
    turn, eos = frame.tokenizer.convert_tokens_to_ids(["<end_of_turn>", "<eos>"])
    assert frame.ends == {turn, eos}
    replies = [[50, turn, 51, 52, eos, 53], [50, 51, eos, turn, 52, 53], [50, 51, 52, 53, 54, eos], [50] * 6]
    lengths, seen = [2, 3, 6, 6], SimpleNamespace(sampled=[], finished=[], scored=[], scores=[], rewards=[])

    def generate(model, input_ids, attention_mask, generation_config, return_dict_in_generate=False, **_):
        stops = generation_config.eos_token_id or model.generation_config.eos_token_id
        assert set(stops) == frame.ends
        given = [i % len(replies) for i in range(len(input_ids))]
        for i, ids, mask in zip(given, input_ids, attention_mask.bool(), strict=True):
            seen.sampled.append((ids[mask].tolist(), replies[i][: lengths[i]]))
            seen.finished.append(i != 3)
        sequences = torch.cat([input_ids, torch.tensor([replies[i] for i in given])], 1)
        if not return_dict_in_generate:
            return sequences
        mask = nn.functional.pad(attention_mask.long(), (0, 6), value=1)
        logits = model(sequences, attention_mask=mask, position_ids=mask.cumsum(1) - mask).logits[:, -7:-1]
        return SimpleNamespace(sequences=sequences, scores=logits.unbind(1))

    score, reward = rewards.score, rewards.Reward.__call__

    def record_scores(model, sequences, *args, **options):
        seen.scored += sequences
        seen.scores += (scores := score(model, sequences, *args, **options)).tolist()
        return scores

    def record_rewards(*args):
        seen.rewards += (values := reward(*args)).tolist()
        return values

    monkeypatch.setattr(GenerationMixin, "generate", generate)
    monkeypatch.setattr(rewards, "score", record_scores)
    monkeypatch.setattr(rewards.Reward, "__call__", record_rewards)
    return seen


def check_rewards(seen):
    assert seen.scored == [prompt + reply for prompt, reply in seen.sampled]
    expected = [score - PENALTY * (not done) for score, done in zip(seen.scores, seen.finished, strict=True)]
    assert seen.rewards == pytest.approx(expected, abs=1e-5)


def trained(recipe, gemma, world, folder, run, **changes):
    changes |= {"model_name_or_path": str(gemma / "sft"), "reward_model_path": str(gemma / "reward")}
    changes |= {"max_prompt_tokens": 160, "missing_eos_penalty": PENALTY, "logging_steps": 1}
    code, _, error = run(recipe, "--config", settings(folder, recipe, world, **changes))
    assert code == 0, error
    return read_jsonl(folder / recipe / "metrics.jsonl")


def test_ppo_takes_every_end_for_one(rollouts, gemma, run, world, tmp_path, monkeypatch):
    read, get_reward = [], CorrectedPPOTrainer._get_reward

    def record(trainer, model, ids, pad, start):
        if model is trainer.reward.model:
            read.extend(ids[:, start:].tolist())
        return get_reward(trainer, model, ids, pad, start)

    monkeypatch.setattr(CorrectedPPOTrainer, "_get_reward", record)
    metrics = trained("ppo", gemma, world, tmp_path, run, response_length=6)
    check_rewards(rollouts)
    pad = load_frame(str(gemma / "sft")).tokenizer.pad_token_id
    assert read == [reply + [pad] * (6 - len(reply)) for _, reply in rollouts.sampled]
    assert [row["val/num_eos_tokens"] for row in metrics] == [12, 12]  # of 16


def test_grpo_takes_every_end_for_one(rollouts, gemma, run, world, tmp_path):
    metrics = trained("grpo", gemma, world, tmp_path, run, max_completion_length=6)
    check_rewards(rollouts)
    assert [row["completions/clipped_ratio"] for row in metrics] == [0.25, 0.25]
    assert [row["completions/mean_length"] for row in metrics] == [(2 + 3 + 6 + 6) / 4] * 2


@pytest.mark.parametrize("name", ["gemma3", "qwen2.5-instruct"])
def test_replies_end_where_the_model_s_own_settings_end_them(name, zoo):
    source, seed, tokens = str(zoo(name)), 7, 150
    frame = load_frame(source)
    prompts = [frame.prompt_ids(frame.prompt(dialogue)) for dialogue in DIALOGUES * 16]
    replies = sample(load_policy(source, frame.tokenizer, "float32"), frame, prompts, tokens, seed)

    model = AutoModelForCausalLM.from_pretrained(source).eval()
    ends, pad = model.generation_config.eos_token_id, frame.tokenizer.pad_token_id
    batch = frame.tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    torch.manual_seed(seed)
    whole = {"do_sample": True, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    rows = model.generate(**batch, **whole, max_new_tokens=tokens, pad_token_id=pad)[:, batch["input_ids"].shape[1] :]
    finished = torch.isin(rows, torch.tensor(ends)).any(1).tolist()
    assert [frame.finished(reply) for reply in replies] == finished and 0 < sum(finished) < len(finished)
    assert {reply[-1] for reply in replies if frame.finished(reply)} == set(ends)
    assert all(row[: len(reply)] == reply for row, reply in zip(rows.tolist(), replies, strict=True))


@pytest.fixture
def rows(monkeypatch):
    """Records the examples that SFT trains on: ids, and the labels that count."""
    seen, step = [], SFTTrainer.training_step

    def record(trainer, model, inputs, *args):
        for ids, labels, mask in zip(
            *(inputs[name] for name in ("input_ids", "labels", "attention_mask")), strict=True
        ):
            seen.append((ids[mask.bool()].tolist(), labels[labels != -100].tolist()))
        return step(trainer, model, inputs, *args)

    monkeypatch.setattr(SFTTrainer, "training_step", record)
    return seen


def test_the_eos_of_the_template_may_be_named(zoo, run, world, tmp_path):
    path = settings(tmp_path, "sft", world, model_name_or_path=str(zoo("qwen2.5-base")), **LIMITS)
    code, _, error = run("sft", "--config", path, "--eos_token", "<|im_end|>")
    assert code == 0, error
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "sft")
    assert tokenizer.eos_token == "<|im_end|>"
    assert AutoConfig.from_pretrained(tmp_path / "sft").eos_token_id == tokenizer.eos_token_id
    ends = GenerationConfig.from_pretrained(tmp_path / "sft").eos_token_id
    assert ends == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])


def test_an_eos_that_the_template_does_not_end_in_is_refused(zoo, run, world, tmp_path):
    path = settings(tmp_path, "sft", world, model_name_or_path=str(zoo("qwen2.5-base")), **LIMITS)
    code, _, error = run("sft", "--config", path, "--eos_token", "<|im_start|>")
    assert code == 2 and "<|im_start|> does not end a reply in the chat template" in error
    assert not (tmp_path / "sft.partial").exists()


def test_without_a_template_any_token_may_end_a_reply(zoo, run, rows, world, tmp_path):
    changes = {"model_name_or_path": str(zoo("gpt2")), "pad_token": PADS["gpt2"], **LIMITS}
    code, _, error = run("sft", "--config", settings(tmp_path, "sft", world, **changes), "--eos_token", "~")
    assert code == 0, error
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "sft")
    assert tokenizer.eos_token == "~"
    assert {(ids[-1], labels[-1]) for ids, labels in rows} == {(tokenizer.eos_token_id,) * 2}
    assert all(ids.count(tokenizer.eos_token_id) == 1 for ids, _ in rows)


def test_rows_are_in_the_template_that_is_given(zoo, run, rows, world, tmp_path):
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    changes = {"model_name_or_path": str(zoo("gpt2")), "pad_token": PADS["gpt2"], **LIMITS}
    path = settings(tmp_path, "sft", world, **changes)
    code, _, error = run("sft", "--config", path, "--chat_template_path", tmp_path / "own.jinja")
    assert code == 0, error
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "sft")
    assert tokenizer.chat_template == TEMPLATE
    for ids, labels in rows:
        *turns, rest = tokenizer.decode(ids).split("<|endoftext|>")
        assert not rest and [turn[: turn.index("]") + 1] for turn in turns[-2:]] == ["[user]", "[assistant]"]
        assert tokenizer.decode(labels) == turns[-1].removeprefix("[assistant]") + "<|endoftext|>"


def test_a_run_goes_on_on_another_day(zoo, run, world, tmp_path, monkeypatch):
    """Where the template prints the date, its rows would be others than those that it was begun on."""
    source, chat = str(zoo("llama3")), [{"role": "user", "content": "Hi"}]
    path = settings(tmp_path, "sft", world, model_name_or_path=source, save_steps=1, **LIMITS)

    def set_day(day):
        """What the template prints from that day on, plainly and in the frame; nothing tokenized before is kept."""
        monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda: datetime(2031, 5, day)))
        chat_template_utils._compile_jinja_template.cache_clear()
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / f"cache-{day}")
        plain = AutoTokenizer.from_pretrained(source).apply_chat_template(chat, tokenize=False)
        assert f"Today Date: {day:02} May 2031" in plain
        return load_frame(source).prompt(DIALOGUES[0])

    first = set_day(3)
    attempt("sft", path, in_step(3))
    assert set_day(4) == first and "Today Date: 26 Jul 2024" in first
    code, out, error = run("sft", "--config", path)
    assert code == 0 and "goes on from" in out, error
