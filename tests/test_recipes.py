"""The chain on tiny models, full and LoRA: one start for all, complete run folders, the evaluation and the report."""

import json
import math
import os

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_trl.config import DataConfig
from rlhf_trl.files import read_jsonl
from rlhf_trl.kl import strength
from rlhf_trl.record import COSTS
from rlhf_trl.rewards import load_reward_model, score
from rlhf_trl.run import Run
from rlhf_trl.tokens import build_dataset
from tests.conftest import RECIPES, settings

LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "lora_target_modules": ["c_attn", "c_fc"]}

QUANTIZED = {"load_in_4bit": True, "dtype": "bfloat16", "lora_target_modules": ["all-linear"]}


@torch.no_grad()
def reading(model):
    """A reward model's score of a text, or a policy's mean log-probability of its tokens."""
    ids = torch.arange(20, 60)[None]
    logits = model.eval()(input_ids=ids).logits.float()
    if logits.ndim == 2:
        return logits.item()
    return logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).mean().item()


@pytest.fixture(scope="module", params=["full", "lora", "qlora"])
def chain(request, world, tmp_path_factory):
    """All five recipes run once: the demo's Llama in full, a chat GPT-2 with LoRA and with 4-bit LoRA. What each model
    says when its training ends is in trained.json."""
    import importlib
    import sys

    readings, original = {}, Run.train

    def train(run, trainer):
        original(run, trainer)
        readings[run.folder.name] = reading(getattr(trainer, "policy_model", trainer.model))

    folder = tmp_path_factory.mktemp(request.param)
    changes = {"full": {}, "lora": LORA, "qlora": LORA | QUANTIZED}[request.param]
    base = "model" if request.param == "full" else "gpt2"
    patch = pytest.MonkeyPatch()
    patch.setattr(Run, "train", train)
    patch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)  # as on a newer CPU than most
    for recipe in RECIPES:
        if recipe != "sft":  # relative paths, as in the shipped configs
            changes["model_name_or_path"] = os.path.relpath(folder / "sft")
        config = settings(folder, recipe, world, base, **changes)
        patch.setattr(sys, "argv", [recipe, "--config", str(config)])
        importlib.import_module(f"recipes.{recipe}").main()
    patch.undo()
    (folder / "trained.json").write_text(json.dumps(readings))
    return folder, request.param


def test_run_folders_are_complete(chain):
    folder, _ = chain
    for recipe in RECIPES:
        run = folder / recipe
        manifest = json.loads((run / "manifest.json").read_text())
        assert manifest["step"] == recipe
        assert manifest["seed"] == 0
        assert manifest["versions"]["trl"].startswith("1.12")
        assert len(manifest["data"]["sha256"]) == 64
        assert all(manifest["train"][key] > 0 for key in COSTS)
        # of PPO 32 episodes in batches of 16, twice in 4 mini-batches
        steps = {"ppo": 16, "grpo": 2}.get(recipe, 3)
        assert manifest["train"]["optimizer_steps"] == steps
        if recipe != "sft":
            parent = json.loads((folder / "sft/manifest.json").read_text())
            assert manifest["made_of"]["model"]["sha256"] == parent["sha256"]
        assert yaml.safe_load((run / "config.yaml").read_text())["dataset"].endswith("data")
        assert read_jsonl(run / "metrics.jsonl")
        assert "README.md" in {path.name for path in run.iterdir()}
        assert not run.with_name(f"{recipe}.partial").exists()
    assert (folder / "ppo/curves.png").stat().st_size > 1000


def test_run_folders_load_without_our_code(chain, monkeypatch):
    folder, kind = chain
    monkeypatch.chdir("/")
    for recipe in ("sft", "ppo", "grpo", "dpo"):
        adapter = kind != "full" and recipe != "sft"
        assert (folder / recipe / "adapter_config.json").exists() == adapter
        model = (AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM).from_pretrained(folder / recipe)
        tokenizer = AutoTokenizer.from_pretrained(folder / recipe)
        inputs = tokenizer("\n\nHuman: Hi\n\nAssistant:", return_tensors="pt")
        assert model.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]
    model = AutoModelForSequenceClassification.from_pretrained(folder / "reward")
    assert model(**inputs).logits.shape == (1, 1)


def test_every_method_starts_from_the_sft_model(chain):
    """At the first step policy and reference are the same: KL 0 (PPO, GRPO), loss log 2 (DPO)."""
    folder, kind = chain
    rounding = 2**-8 if kind == "qlora" else 1e-5  # bfloat16 has 8 significant bits
    first = {recipe: read_jsonl(folder / f"{recipe}/metrics.jsonl")[0] for recipe in ("ppo", "grpo", "dpo")}
    assert first["ppo"]["objective/kl"] == pytest.approx(0, abs=8 * rounding)  # a sum over 8 tokens
    assert first["grpo"]["kl"] == pytest.approx(0, abs=rounding)
    assert first["dpo"]["loss"] == pytest.approx(math.log(2), abs=rounding)


def test_the_reference_of_dpo_is_asked_once(chain, run, world, tmp_path, monkeypatch):
    """A second run, with other settings, reads its log-probabilities from the cache, and needs no second model. With
    a setting that changes them, it is asked again."""
    from trl import DPOTrainer

    folder, kind = chain
    changes = {"full": {}, "lora": LORA, "qlora": LORA | QUANTIZED}[kind]
    changes["model_name_or_path"] = os.path.relpath(folder / "sft")
    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", None)
    assert run("dpo", "--config", settings(tmp_path, "dpo", world, beta=0.5, **changes))[0] == 0
    first = read_jsonl(tmp_path / "dpo/metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=2**-8 if kind == "qlora" else 1e-5)
    with pytest.raises(TypeError, match="NoneType"):
        run("dpo", "--fresh", "--config", settings(tmp_path, "dpo", world, beta=0.5, ld_alpha=0.5, **changes))


def test_held_out_chosen_scores_have_mean_0_and_sd_1(chain):
    folder, kind = chain
    rounding = 2**-8 if kind == "qlora" else 1e-3
    config = yaml.safe_load((folder / "reward/config.yaml").read_text())
    data = DataConfig(
        dataset=config["dataset"], splits=config["splits"], max_prompt_tokens=64, max_completion_tokens=32
    )
    model, frame = load_reward_model(str(folder / "reward"), data, seed=0)
    pairs = build_dataset(data, "validation", frame, seed=0)
    ids = [a + b for a, b in zip(pairs["prompt_ids"], pairs["chosen_ids"], strict=True)]
    scores = score(model, ids)
    assert scores.mean().item() == pytest.approx(0, abs=rounding)
    assert scores.std().item() == pytest.approx(1, abs=rounding)


def test_one_strength_of_the_kl(chain):
    folder, _ = chain
    settings = {name: yaml.safe_load((folder / name / "config.yaml").read_text()) for name in ("ppo", "grpo", "dpo")}
    std = json.loads((folder / "reward/config.json").read_text())["reward_std"]
    strengths = {name: strength(values, std) for name, values in settings.items()}
    assert strengths == pytest.approx(dict.fromkeys(strengths, settings["ppo"]["kl_strength"]))
    parents = json.loads((folder / "dpo/manifest.json").read_text())["made_of"]
    assert parents["reward_model"] == json.loads((folder / "ppo/manifest.json").read_text())["made_of"]["reward_model"]


def test_models_of_other_splits_are_refused(chain, run, world, tmp_path):
    folder, _ = chain
    shares = {"sft": 0.2, "reward": 0.2, "policy": 0.2, "gold": 0.2, "validation": 0.2}
    config = settings(tmp_path, "dpo", world, model_name_or_path=str(folder / "sft"), beta=0.1, splits=shares)
    code, _, error = run("dpo", "--config", config)
    assert code == 2 and error.splitlines()[-1].startswith(f"error: the model {folder / 'sft'} was trained with splits")


def test_adapters_learn(chain):
    """What was trained differs from SFT, and only by what was configured."""
    folder, kind = chain
    sft = AutoModelForCausalLM.from_pretrained(folder / "sft")
    ids = torch.arange(20, 60)[None]
    for recipe in ("ppo", "grpo", "dpo"):
        loader = AutoModelForCausalLM if kind == "full" else AutoPeftModelForCausalLM
        policy = loader.from_pretrained(folder / recipe)
        assert (policy(input_ids=ids).logits - sft(input_ids=ids).logits).abs().max() > 1e-4, recipe


def test_what_was_trained_is_what_is_saved_loaded_and_merged(chain):
    """4-bit LoRA included: the adapter is merged into the weights as they were before the quantization."""
    folder, kind = chain
    for recipe, trained in json.loads((folder / "trained.json").read_text()).items():
        if (folder / recipe / "adapter_config.json").exists():
            model = AutoPeftModelForCausalLM.from_pretrained(folder / recipe, dtype="float32")
            assert reading(model) == pytest.approx(trained, abs=1e-2), recipe
            model = model.merge_and_unload()
        else:
            loader = AutoModelForSequenceClassification if recipe == "reward" else AutoModelForCausalLM
            model = loader.from_pretrained(folder / recipe, dtype="float32")
        assert reading(model) == pytest.approx(trained, abs=1e-2 if kind == "qlora" else 1e-4), recipe


def test_merging_keeps_what_was_learned(chain, world):
    """More than rounding to the saved dtype sets the SFT model apart from its base."""
    folder, kind = chain
    sft = AutoModelForCausalLM.from_pretrained(folder / "sft").state_dict()
    base = AutoModelForCausalLM.from_pretrained(world / ("model" if kind == "full" else "gpt2")).state_dict()
    name = next(name for name in base if name.endswith(("c_attn.weight", "q_proj.weight")))
    assert not torch.equal(sft[name], base[name].to(sft[name].dtype))


def test_checkpoints_are_models_and_no_more(chain):
    folder, kind = chain
    for recipe in ("ppo", "grpo", "dpo"):
        checkpoints = list((folder / recipe).glob("checkpoint-*"))
        assert checkpoints
        for checkpoint in checkpoints:
            assert (checkpoint / ("config.json" if kind == "full" else "adapter_config.json")).exists()
            assert not [path for path in checkpoint.iterdir() if path.suffix in (".pt", ".pth", ".bin")]


def test_evaluation_and_report(chain, run, world):
    """All commands of the evaluation, in order, on what the recipes made."""
    folder, _ = chain
    config = settings(folder, "eval", world, replies=2, judge_replies=2, judge_greedy=True)
    commands = ["data", "reward-model", "samples", "score", "judge", "report"]
    extra = {"data": ["--tokenizer", folder / "sft"]}
    outputs = {command: run(command, "--config", config, *extra.get(command, [])) for command in commands}
    assert {command: code for command, (code, _, _) in outputs.items()} == dict.fromkeys(commands, 0)
    assert outputs["report"][1].strip().splitlines()[-1].endswith("report/ANALYSIS.md")

    scores = {name: read_jsonl(folder / f"scores/{name}.jsonl") for name in ("base", "sft", "ppo", "grpo", "dpo")}
    dialogues = [row["dialogue"] for row in scores["sft"]]
    assert len(dialogues) == 8 * 2
    for rows in scores.values():
        assert [row["dialogue"] for row in rows] == dialogues
        assert [row["reply"] for row in rows] == [0, 1] * 8
    assert all(row["kl"] == 0 for row in scores["sft"])
    assert all(row["kl"] > 0 for name in ("base", "ppo", "grpo", "dpo") for row in scores[name])
    described = json.loads((folder / "scores/manifest.json").read_text())["kl"]
    assert set(described.values()) == {"exact"} and described.keys() > {*scores, "colder/sft-0.7"}
    assert {row["kl"] for name in ("best_of", "greedy/ppo") for row in read_jsonl(folder / f"scores/{name}.jsonl")} == {
        None
    }
    assert all({row["cue"], row["refused"]} <= {True, False} for rows in scores.values() for row in rows)
    assert len(read_jsonl(folder / "scores/best_of.jsonl")) == 4 * 4

    summary = json.loads((folder / "report/summary.json").read_text())
    assert set(summary) >= {"profile", "seed", "machine", "versions", "reward_model", "policies"}
    assert summary["missing"] == {}
    for name, policy in summary["policies"].items():
        proxy = [row["proxy"] for row in scores[name]]
        assert policy["proxy_reward"]["mean"] == pytest.approx(sum(proxy) / 16)
        assert policy["proxy_reward"]["ci"][0] <= policy["proxy_reward"]["mean"] <= policy["proxy_reward"]["ci"][1]
    assert {len(pairs) for pairs in summary["measures"].values()} == {6} and summary["prompts"] == 8
    assert summary["signs"]["measure"] == "win rate" and len(summary["judge"]["greedy"]) == 6
    assert len(read_jsonl(folder / "judge/verdicts.jsonl")) == 6 * (8 * 2 + 8)
    assert [condition["what"] for condition in summary["conditions"] if not condition["holds"]] == []
    assert summary["matched"] and summary["differences"]["optimizer steps"] == {"ppo": 16, "grpo": 2, "dpo": 3}
    assert set(summary["untrained"]) == {
        "base",
        *("sft at temperature 0.7", "sft at temperature 0.3", "sft, best of 4 by the proxy"),
    }
    assert set(summary["optimisation"]["curves"]) == {"ppo", "grpo", "dpo", "best_of_n"}
    text = (folder / "report/ANALYSIS.md").read_text()
    assert f"{summary['policies']['ppo']['proxy_reward']['mean']:.2f} [" in text and "no verdict on the methods" in text
    for stem in ("comparisons", "reward_kl", "rewards", "win_rates", "optimisation", "ppo_curves", "reliability"):
        assert (folder / f"report/{stem}.png").exists() and (folder / f"report/{stem}.svg").exists()

    # New replies, and verdicts on the old ones
    assert run("report", "--config", config)[1].startswith("report: nothing to do")
    for command in ("samples", "score"):
        code, _, error = run(command, "--config", config, "--seed", 1)
        assert code == 2 and "seed: 0, and now it is 1" in error.splitlines()[-1]
        assert run(command, "--config", config, "--seed", 1, "--fresh")[0] == 0
    code, _, error = run("report", "--config", config, "--seed", 1, "--fresh")
    assert code == 2 and "judge was made from another scores" in error.splitlines()[-1]


def test_any_two_policies_can_be_compared(chain, run, world, tmp_path):
    folder, _ = chain
    config = settings(tmp_path, "eval", world, curve_prompts=0)
    policies = [f"start={folder / 'sft'}", f"tuned={folder / 'ppo'}"]
    code, out, _ = run("compare", *policies, "--config", config, "--reward_model", folder / "reward")
    assert code == 0
    assert out.strip().splitlines()[-1].endswith("compare/start-tuned/report/ANALYSIS.md")
    summary = json.loads((tmp_path / "compare/start-tuned/report/summary.json").read_text())
    assert [(c["a"], c["b"]) for c in summary["comparisons"]] == [("tuned", "start")]
    assert set(summary["differences"]["optimizer steps"]) == {"tuned"}
    assert run("compare", policies[0], "--config", config)[0] == 2
    assert run("compare", *policies, "--config", config)[0] == 2  # no reward model


def test_a_run_that_dies_leaves_no_run_folder_and_a_finished_one_alone(world, tmp_path, monkeypatch, run):
    from rlhf_trl import run as runs

    config = settings(tmp_path, "sft", world)

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "plot_curves", die)  # the model is saved by then
    assert run("sft", "--config", config)[0] == 130
    assert not (tmp_path / "sft").exists()
    monkeypatch.undo()

    assert run("sft", "--config", config)[0] == 0
    before = (tmp_path / "sft/manifest.json").read_text()
    assert run("sft", "--config", config)[1] == f"sft: nothing to do; the result is in {tmp_path / 'sft'}\n"
    monkeypatch.setattr(runs, "plot_curves", die)
    assert run("sft", "--config", config, "--fresh")[0] == 130
    assert (tmp_path / "sft/manifest.json").read_text() == before
