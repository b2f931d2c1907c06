"""Files and splits of preference data: which are read, and that recipes train on all that people have."""

import json

import pytest

from rlhf_trl.config import DataConfig
from rlhf_trl.data_files import find_files
from rlhf_trl.preferences import load_pairs
from rlhf_trl.splits import load_split
from tests.conftest import settings
from tests.preference_rows import FIVE, FORMS, FOUR, PLAIN, QUESTION, ROW, SYSTEM, turn, write


@pytest.mark.parametrize(
    ("names", "options", "train", "test"),
    [
        ("a/train.jsonl.gz a/test.jsonl.gz a/notes.jsonl a/b.txt", {}, "a/train.jsonl.gz", "a/test.jsonl.gz"),
        ("d/train-00000-of-00002.parquet d/train-00001-of-00002.parquet", {}, "d/train-00000 d/train-00001", ""),
        ("train_prefs-00000-of-00001.parquet test_prefs-00000-of-00001.parquet", {}, "train_prefs", "test_prefs"),
        ("train_a.csv train_b.csv test_a.csv test_b.csv", {"split": "train_b"}, "train_b", "test_b"),
        ("d/train/0000.parquet d/validation/0000.parquet", {}, "d/train/0000", "d/validation/0000"),
        ("prefs.json", {}, "prefs.json", ""),
        ("a.csv b.csv", {"split": "a", "test_split": "b"}, "a.csv", "b.csv"),
        (".ipynb_checkpoints/train.jsonl train.jsonl .cache/test.jsonl", {}, "train.jsonl", ""),
        ("preference/train.jsonl edit/train.jsonl", {"data_dir": ["preference"]}, "preference/train", ""),
        ("test.jsonl", {}, "", "test.jsonl"),
        ("train/data.jsonl test/data.jsonl", {}, "train/data.jsonl", "test/data.jsonl"),
        ("train-00000-of-00001-8349d0765e.parquet test-00000-of-00001-b1.parquet", {}, "train-", "test-"),
        ("Train.jsonl val.jsonl notes.json", {}, "Train", "val"),
        ("part1.jsonl part2.jsonl", {}, "part1 part2", ""),
        ("dataset_infos.json prefs.jsonl x.csv.jsonl.txt", {}, "prefs", ""),
    ],
)
def test_the_files_of_a_split(names, options, train, test, tmp_path):
    for name in names.split():
        write(tmp_path / name, ROW)
    for split, expected in (("train", train), ("test", test)):
        found = [
            str(file.path.relative_to(tmp_path)) for file in find_files(DataConfig(str(tmp_path), **options), split)
        ]
        assert len(found) == len(expected.split())
        assert all(map(str.startswith, found, expected.split()))


def test_a_file_may_be_of_one_split_and_then_of_another(tmp_path):
    for name in ("train", "test"):
        write(tmp_path / f"{name}.jsonl", PLAIN | {"prompt": name})
    for options in ({"split": "test", "test_split": "train"}, {}, {"split": "test", "test_split": "train"}):
        config = DataConfig(str(tmp_path), **options)
        assert load_pairs(config, "train")["prompt"][:] == [options.get("split", "train")]
        assert load_pairs(config, "test")["prompt"][:] == [options.get("test_split", "test")]


def test_one_question_has_one_place_in_every_form(tmp_path):
    """Whether it is a text in one file and a message in another: no prompt of the one is tested on in the other."""
    write(tmp_path / "train.jsonl", *(PLAIN | {"prompt": f"{i}?"} for i in range(9)))
    chats = [{"prompt": [turn(f"{i}?", "user")], "chosen": FOUR, "rejected": FIVE} for i in range(10)]
    write(tmp_path / "test.jsonl", *chats)
    rows, dropped, _ = load_split(DataConfig(str(tmp_path)), "eval")
    assert rows["prompt"][:] == ["\n\nHuman: 9?\n\nAssistant:"]
    assert dropped["prompt also in the train split"] == 9


def test_a_train_split_alone_gives_a_test_split_by_the_same_hash(tmp_path):
    path = write(tmp_path / "prefs.jsonl", *(PLAIN | {"prompt": f"{i}?"} for i in range(2000)))
    config = DataConfig(str(path))
    prompts = {name: set(load_split(config, name)[0]["prompt"][:]) for name in (*config.splits, "eval")}
    assert sum(map(len, prompts.values())) == len(set().union(*prompts.values())) == 2000
    assert 150 < len(prompts["eval"]) < 250  # 200, of sd 13
    fewer = DataConfig(str(write(tmp_path / "fewer.jsonl", *(PLAIN | {"prompt": f"{i}?"} for i in range(500)))))
    for name, all_of_them in prompts.items():
        assert set(load_split(fewer, name)[0]["prompt"][:]) <= all_of_them


LAYOUTS = {
    "UltraFeedback": ("data/train_prefs-00000-of-00001.parquet", "messages that repeat a text", []),
    "UltraFeedback, implicit prompt": ("data/train-00000-of-00001.parquet", "messages, implicit prompt", []),
    "texts": ("prefs.jsonl", "plain", []),
    "other columns": ("train.csv", "plain", ["--columns", "prompt=q", "chosen=yes", "rejected=no"]),
    "system messages": ("train.json", "system", []),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recipes_train_on_it(layout, run, world, tmp_path):
    """Reward model and DPO of a chat model, on data of that layout alone."""
    name, form, options = LAYOUTS[layout]
    record = {"plain": PLAIN, "system": {"prompt": [SYSTEM, *QUESTION], "chosen": FOUR, "rejected": FIVE}} | FORMS
    records = [json.loads(json.dumps(record[form]).replace("One?", f"{i}?")) for i in range(400)]
    if options:
        records = [dict(zip(("q", "yes", "no"), record.values(), strict=True)) for record in records]
    path = write(tmp_path / "data" / name, *records)
    shared = {"dataset": str(path if layout == "texts" else tmp_path / "data"), "max_steps": 1}
    shared["model_name_or_path"] = str(world / "gpt2")
    for recipe in ("reward", "dpo"):
        code, said, error = run(recipe, "--config", settings(tmp_path, recipe, world, base="gpt2", **shared), *options)
        assert code == 0, error
        assert f"read {path}: 400 rows" in said
