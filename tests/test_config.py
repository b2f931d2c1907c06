"""Every shipped YAML, and the config half of contract 7."""

import sys

import pytest
import yaml
from transformers import HfArgumentParser
from trl import ModelConfig, SFTConfig

from eval.config import CONFIGS
from eval.probes import load_probes
from rlhf_trl import config as config_module
from rlhf_trl import kl, outline
from rlhf_trl.config import RECIPES, parse
from rlhf_trl.errors import UserError
from tests.conftest import ROOT

CLASSES = RECIPES | {"eval": CONFIGS}
SHIPPED = sorted(path for path in (ROOT / "configs").glob("*/*.yaml") if path.stem in CLASSES)


def test_every_profile_is_complete():
    profiles = {path.parent.name for path in SHIPPED}
    assert profiles == {"demo", "gpt2", "smollm2", "qwen3-8b"}
    assert len(SHIPPED) == len(profiles) * len(CLASSES)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_yaml_means_what_it_says(path, monkeypatch):
    monkeypatch.setattr(config_module, "check_folder", lambda *_: None)  # what they start from is yet to be made
    parsed = parse(None, *CLASSES[path.stem], argv=["--config", str(path)])
    values = {}
    for part in parsed:
        values |= vars(part)
    for key, value in yaml.safe_load(path.read_text()).items():
        if isinstance(value, list) and len(value) == 1:
            value = value[0]  # what TRL's ModelConfig makes of it
        got = getattr(values[key], "value", values[key])  # enums
        assert got == (getattr(value, "value", value)), key


@pytest.mark.parametrize("path", (ROOT / "configs").glob("*/eval.yaml"), ids=lambda path: path.parent.name)
def test_every_profile_has_probes(path):
    assert len(load_probes(str(ROOT / yaml.safe_load(path.read_text())["probes"]))) > 10


def test_the_command_line_overrides_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"model_name_or_path: m\noutput_dir: {tmp_path}/o\nlearning_rate: 1.0e-3\n")
    args = parse(None, ModelConfig, SFTConfig, argv=["--config", str(path), "--learning_rate", "2e-3"])[-1]
    assert args.learning_rate == 2e-3


def test_an_empty_list_and_a_plain_no_are_values(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"model_name_or_path: m\noutput_dir: {tmp_path}/o\nsave_strategy: no\ndata_dir: []\n")
    data, *_, args = parse(None, *RECIPES["sft"], argv=["--config", str(path)])
    assert args.save_strategy == "no" and data.data_dir == []
    path.write_text(f"output_dir: {tmp_path}\ncolder: []\n")
    assert parse(None, *CONFIGS, argv=["--config", str(path)])[1].colder == []


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
        ("grpo", "kl_strength: 0.1", "kl_strength needs scale_rewards: none, not group"),
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
        parse(None, *CLASSES[recipe], argv=["--config", str(path)])


def test_one_strength_of_the_kl_is_each_trainers_own_coefficient(tmp_path):
    """The command line's way to say it takes the place of the file's, and TRL's default holds where nothing is said."""

    def coefficient(recipe: str, *options: str, line: str = "") -> float | None:
        path = tmp_path / "c.yaml"
        path.write_text(f"model_name_or_path: m\noutput_dir: {tmp_path}/o\nreward_model_path: r\n{line}")
        args = parse(None, *RECIPES[recipe], argv=["--config", str(path), *options])[-1]
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
        parse(None, *CLASSES["dpo"], argv=["--model_name_or_path", "m", "--output_dir", str(tmp_path), "--bata", "1"])


@pytest.mark.parametrize(
    "name", sorted({part for parts in RECIPES.values() for part in parts if isinstance(part, str)})
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
        parse(None, *CLASSES["sft"], argv=["--config", "nowhere.yaml"])
    monkeypatch.setattr("rlhf_trl.options.find_spec", lambda name: None)
    options = ["--model_name_or_path", "m", "--output_dir", str(tmp_path / "o"), "--load_in_4bit", "--use_peft"]
    with pytest.raises(UserError, match="load_in_4bit needs bitsandbytes, which"):
        parse(None, *CLASSES["sft"], argv=options)


def test_unwritable_runs_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        parse(
            None, *CLASSES["sft"], argv=["--model_name_or_path", "m", "--output_dir", str(tmp_path / "file" / "runs")]
        )


def test_readme_names_only_what_exists():
    text = (ROOT / "README.md").read_text()
    for word in set(text.replace("`", " ").replace("(", " ").replace(")", " ").split()):
        if word.startswith(("configs/", "recipes/", "docs/", "rlhf_trl/", "eval/")) and "<" not in word:
            assert (ROOT / word.rstrip(".,:;")).exists(), word
    targets = (ROOT / "Makefile").read_text()
    for line in text.splitlines():
        if line.strip().startswith("make "):
            target = line.split()[1]
            assert "=" in target or target in targets, line
