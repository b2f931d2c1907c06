"""Profiles, and the options of every step: values that are known, and those that are refused."""

import re
import sys
from pathlib import Path

import pytest
from transformers import HfArgumentParser

from eval.__main__ import COMMANDS
from eval.probes import load_probes
from rlhf_trl import cli, kl, outline
from rlhf_trl.cli import fill, parse, read_task
from rlhf_trl.config import RECIPES
from rlhf_trl.errors import UserError
from rlhf_trl.profiles import ALL, read_profile, scopes_of
from rlhf_trl.steps import STEPS, options_of
from tests.conftest import ROOT

SHIPPED = sorted(path for path in (ROOT / "configs").glob("*.yaml"))


def test_every_profile_is_complete():
    assert {path.stem for path in SHIPPED} == {"demo", "gpt2", "smollm2", "qwen3-8b"}
    for path in SHIPPED:
        assert read_profile(path).keys() >= {*RECIPES, "eval"}


@pytest.mark.parametrize("step", [step for step in STEPS if step != "demo-data"])
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_profile_means_what_it_says(path, step, monkeypatch, tmp_path):
    """What stands at the top reaches every step that has the option, unless a section says otherwise."""
    monkeypatch.chdir(tmp_path)  # where no run is finished
    monkeypatch.setattr(cli, "check_folder", lambda *_: None)  # what they start from is yet to be made
    task, *parsed = parse(step, argv=["--config", str(path)])
    values = {}
    for part in parsed:
        values |= vars(part)
    content = read_profile(path)
    content[ALL] = {key: value for key, value in content.items() if not isinstance(value, dict) or key == "splits"}
    said = {}
    for scope in scopes_of(step):
        said |= {key: value for key, value in content.get(scope, {}).items() if key in options_of(step)}
    for key, value in said.items():
        if isinstance(value, list) and len(value) == 1:
            value = value[0]  # what TRL's ModelConfig makes of it
        got = getattr(values[key], "value", values[key])  # enums
        assert got == (getattr(value, "value", value)), key
    runs = Path("runs") / path.stem
    assert values["output_dir"] == str(runs if STEPS[step].is_evaluation else runs / step)
    assert task.folder == runs / STEPS[step].folders[0]
    base = content.get("base_model", str(runs / "model"))
    if step in RECIPES:
        assert values["model_name_or_path"] == (base if step == "sft" else str(runs / "sft"))
        assert values.get("reward_model_path") in (None, str(runs / "reward"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_profile_has_probes(path):
    assert len(load_probes(str(ROOT / read_profile(path)["eval"]["probes"]))) > 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", "unknown key lerning_rate; did you mean learning_rate"),
        ("beta: 0.1", "beta means another thing in each method; set it in the section of a step"),
        ("learning_rate: 0.1", "learning_rate means another thing"),
        ("max_steps: 5", "max_steps means another thing"),
        ("model_name_or_path: m", "the graph sets it; name base_model"),
        ("dpo: {bata: 1}", "dpo: unknown key bata; did you mean beta"),
        ("dpo: {num_generations: 4}", "dpo: unknown key num_generations"),
        ("eval: {promts: 4}", "eval: unknown key promts; did you mean prompts"),
        ("eval: {num_generations: 4}", "eval: unknown key num_generations"),
        ("judge: {prompts: 4}", "judge: unknown key prompts"),
        ("dpo: [1]", "dpo is a section and must hold"),
        ("dpo: false", "dpo is a section and must hold"),
        ("sft: {max_steps: 1}", "sft stands there twice"),
        ("no: 1", "unknown key False"),
        ("world: mars", "unknown world mars"),
    ],
)
def test_a_key_without_a_place_is_refused_whichever_step_runs(text, message, tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(f"base_model: m\nsft: {{}}\n{text}\n")
    for step in ("sft", "samples"):
        with pytest.raises(UserError, match=message):
            read_task(step, ["--config", str(path)])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_command_that_is_no_step_takes_what_a_profile_says_to_the_evaluation(path, tmp_path):
    argv = ["--config", str(path), "--output_dir", str(tmp_path), "--policies", "a=x", "b=y"]
    _, data, config = fill(None, COMMANDS["compare"], argv)[0]
    said = read_profile(path)["eval"]
    assert {name: getattr(config, name) for name in said} == said
    assert data.max_prompt_tokens == read_profile(path)["max_prompt_tokens"]


def test_a_section_overrides_what_is_shared_and_the_command_line_both(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("base_model: m\nseed: 1\nmax_rows: 5\nsft: {max_rows: 6}\neval: {seed: 2}\nscore: {seed: 3}\n")

    def options(step, *argv):
        return read_task(step, ["--config", str(path), *argv])[0].options

    assert options("sft") == {"seed": 1, "max_rows": 6} | options("sft", "--seed", "1", "--max_rows", "6")
    assert options("reward")["max_rows"] == 5
    assert options("reward", "--max_rows", "7")["max_rows"] == 7
    assert [options(step)["seed"] for step in ("reward", "samples", "score")] == [1, 2, 3]
    assert "seed" not in options("judge")  # which has no such option


def test_the_judge_is_a_section_and_an_option(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(f"output_dir: {tmp_path}\njudge: none\n")
    assert read_task("judge", ["--config", str(path)])[-1].judge == "none"


def test_a_file_without_sections_is_the_options_of_one_step(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text(f"model_name_or_path: m\noutput_dir: {tmp_path}/o\nlearning_rate: 0.1\n")
    *_, args = read_task("sft", ["--config", str(path)])
    assert (args.learning_rate, args.output_dir) == (0.1, f"{tmp_path}/o")
    path.write_text(f"base_model: m\noutput_dir: {tmp_path}/o\n")
    with pytest.raises(UserError, match="unknown key base_model"):
        read_task("sft", ["--config", str(path)])


def test_the_command_line_overrides_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"model_name_or_path: m\noutput_dir: {tmp_path}/o\nlearning_rate: 1.0e-3\n")
    args = parse("sft", argv=["--config", str(path), "--learning_rate", "2e-3"])[-1]
    assert args.learning_rate == 2e-3


def test_an_empty_list_and_a_plain_no_are_values(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"model_name_or_path: m\noutput_dir: {tmp_path}/o\nsave_strategy: no\ndata_dir: []\n")
    _, data, *_, args = parse("sft", argv=["--config", str(path)])
    assert args.save_strategy == "no" and data.data_dir == []
    path.write_text(f"output_dir: {tmp_path}\ncolder: []\n")
    assert parse("samples", argv=["--config", str(path)])[-1].colder == []


@pytest.mark.parametrize(
    ("recipe", "line", "message"),
    [
        ("sft", "lerning_rate: 1.0e-3", "unknown key lerning_rate; did you mean learning_rate"),
        ("sft", "learning_rate: fast", "invalid float value: 'fast'"),
        ("sft", "num_train_epochs: [1, 2]", "invalid float value"),
        ("sft", "gradient_checkpointing: 3", "Truthy value expected"),
        ("sft", "lr_scheduler_type: zigzag", "zigzag"),
        ("sft", "a: b: c", "not valid YAML"),
        ("sft", "load_in_4bit: true", "use_peft: true"),
        ("ppo", "train_sampling_strategy: sequential", "set group_by_length or random"),
        ("dpo", "train_sampling_strategy: batch_rebalance", "set group_by_length or random"),
        ("dpo", "sync_ref_model: true", "set precompute_ref_log_probs: false"),
        ("sft", "max_rows: 0", "max_rows must be at least 1"),
        (
            "sft",
            "max_length: 99",
            "max_length has no place here: .* never cut; set max_prompt_tokens",
        ),
        ("ppo", "max_steps: 2", "max_steps has no place here: PPO counts episodes; set total_episodes"),
        ("ppo", "bf16: true", "bf16 has no place here: .* does not read it; set dtype: bfloat16"),
        (
            "ppo",
            "load_in_8bit: true\nuse_peft: true\ndtype: bfloat16",
            "8 bits cannot be shared by value",
        ),
        ("grpo", "num_generations: 3", "divisible|divide|multiple"),
        ("ppo", "kl_strength: 0.1\nkl_coef: 0.1", "kl_strength and kl_coef both say"),
        ("ppo", "kl_strength: -0.1", "kl_strength must be at least 0"),
        (
            "ppo",
            "kl_strength: 0.1\nkl_estimator: k3",
            "kl_strength needs kl_estimator: k1, not k3; set that, or kl_coef",
        ),
        ("grpo", "kl_strength: 0.1\nscale_rewards: group", "kl_strength needs scale_rewards: none, not group"),
        ("grpo", "kl_strength: 0.1\nscale_rewards: none\nimportance_sampling_level: sequence", "level: token"),
        ("grpo", "kl_strength: 0.1\nscale_rewards: none\nuse_bias_correction_kl: false", "_kl: True, not False"),
        ("dpo", "kl_strength: 0.1", "needs the scale of a reward model; set reward_model_path, or beta"),
        ("dpo", "kl_strength: 0.1\nreward_model_path: r\nloss_type: ipo", r"loss_type: \['sigmoid'\], not \['ipo'\]"),
        (
            "dpo",
            "kl_strength: 0.1\nreward_model_path: r\nld_alpha: 0.5",
            "needs ld_alpha: None, not 0.5; set that, or beta",
        ),
        ("sft", "splits: {sft: 0.5, reward: 0.5}", "splits: policy needs a share above 0"),
        ("sft", "splits: {sft: 1, reward: 1, policy: 1, validation: 1}", "the shares add up to 4, not to 1"),
        ("sft", "splits: {sft: 0.5, rewards: 0.5}", "there is no split rewards; they are sft, reward,"),
        ("sft", "splits: half", "half holds no shares; write"),
    ],
)
def test_a_bad_line_is_named(tmp_path, recipe, line, message):
    path = tmp_path / "c.yaml"
    reward_model = "reward_model_path: r\n" if recipe == "grpo" else ""
    path.write_text(f"model_name_or_path: m\n{reward_model}output_dir: {tmp_path}/o\n{line}\n")
    with pytest.raises(UserError, match=message):
        parse(recipe, argv=["--config", str(path)])


def test_one_strength_of_the_kl_is_each_trainers_own_coefficient(tmp_path):
    """The command line's way to say it takes the place of the file's, and TRL's default holds where nothing is said."""

    def coefficient(recipe: str, *options: str, line: str = "") -> float | None:
        path = tmp_path / "c.yaml"
        path.write_text(f"model_name_or_path: m\noutput_dir: {tmp_path}/o\nreward_model_path: r\n{line}")
        args = parse(recipe, argv=["--config", str(path), *options])[-1]
        return getattr(args, "kl_coef", getattr(args, "beta", None))

    strong = "kl_strength: 0.4\n"
    grpo = strong + "scale_rewards: none\n"
    assert coefficient("ppo", line=strong) == 0.4
    assert coefficient("grpo", "--num_generations", "4", line=grpo) == pytest.approx(0.3)
    assert coefficient("dpo", line=strong) is None  # until its recipe knows the reward model's scale
    assert coefficient("dpo", "--beta", "0.2", line=strong) == 0.2
    assert coefficient("ppo", "--kl_coef=0.2", line=strong) == 0.2
    assert coefficient("ppo", "--run_name", "beta", line=strong) == 0.4  # a value is no option
    assert coefficient("grpo", "--kl_strength", "0.8", "--scale_rewards", "none", line="beta: 0.1\n") == pytest.approx(
        0.7
    )
    assert (coefficient("ppo"), coefficient("grpo"), coefficient("dpo")) == (0.05, 0.0, 0.1)


def test_the_strength_is_read_back_from_a_runs_settings():
    ppo = {"kl_coef": 0.4, "kl_estimator": "k1", "gamma": 1.0}
    grpo = {"beta": 0.3, "num_generations": 4} | kl.NEEDED["num_generations"]
    dpo = {"beta": 0.8} | kl.NEEDED["beta"]
    assert [kl.strength(settings, 2.0) for settings in (ppo, grpo, dpo)] == pytest.approx([0.4, 0.4, 0.4])
    assert kl.strength(grpo | {"scale_rewards": "group"}, 2.0) is None
    assert kl.strength(dpo, None) is None
    assert kl.strength({"learning_rate": 1}, 2.0) is None


def test_unknown_option_names_the_closest(tmp_path):
    with pytest.raises(UserError, match="unknown key bata; did you mean beta"):
        parse("dpo", argv=["--model_name_or_path", "m", "--output_dir", str(tmp_path), "--bata", "1"])


@pytest.mark.parametrize(
    "name", sorted({part for recipe in RECIPES.values() for part in recipe.configs if isinstance(part, str)})
)
def test_an_outline_has_the_options_of_its_class(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    original = outline.load(name)
    outline.outline(name)
    monkeypatch.setattr(outline, "load", None)  # what the first one left is enough
    parsers = [HfArgumentParser(kind) for kind in (original, outline.outline(name))]
    options, others = ({action.dest: action for action in parser._actions} for parser in parsers)
    assert others.keys() == options.keys()
    for option, action in options.items():
        for detail in ("option_strings", "nargs", "const", "default", "help", "required"):
            assert getattr(others[option], detail) == getattr(action, detail), option
        assert list(others[option].choices or ()) == list(action.choices or ())


def test_missing_file_and_missing_bitsandbytes(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"nowhere\.yaml cannot be read"):
        parse("sft", argv=["--config", "nowhere.yaml"])
    monkeypatch.setattr("rlhf_trl.options.find_spec", lambda name: None)
    options = ["--model_name_or_path", "m", "--output_dir", str(tmp_path / "o"), "--load_in_4bit", "--use_peft"]
    with pytest.raises(UserError, match="load_in_4bit needs bitsandbytes, which"):
        parse("sft", argv=options)


def test_unwritable_runs_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        parse("sft", argv=["--model_name_or_path", "m", "--output_dir", str(tmp_path / "file" / "runs")])


def test_readme_names_only_what_exists():
    text = (ROOT / "README.md").read_text()
    for word in set(text.replace("`", " ").replace("(", " ").replace(")", " ").split()):
        if word.startswith(("configs/", "recipes/", "docs/", "rlhf_trl/", "eval/")) and "<" not in word:
            assert (ROOT / word.rstrip(".,:;")).exists(), word
    own = re.search(r"^OWN .*:= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    targets = {*own, *STEPS, "demo", "all", "status", "correctness", "chaos", "bench"}
    for line in text.splitlines():
        if line.strip().startswith("make "):
            target = line.split()[1]
            assert "=" in target or target in targets, line
