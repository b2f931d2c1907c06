"""`python -m eval data` against a hand-made data set whose counts are known."""

import csv
import json
import sys

import pytest

from eval import __main__ as command
from eval.data import overlaps
from rlhf_trl.config import DataConfig
from rlhf_trl.frame_loading import load_frame
from rlhf_trl.frames import REASONS
from rlhf_trl.tokens import tokenize_split


def analyse(monkeypatch, world, data, out, **options):
    options = {"dataset": data, "output_dir": out, "tokenizer": world / "model"} | options
    words = [f"--{name}={value}" for name, value in options.items()]
    monkeypatch.setattr(sys, "argv", ["eval", "data", *words])
    command.main()


def pair(question, chosen, rejected, before=""):
    prompt = f"{before}\n\nHuman: {question}\n\nAssistant:"
    return {"chosen": prompt + chosen, "rejected": prompt + rejected}


def write(folder, name, pairs):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


@pytest.fixture
def data(tmp_path):
    """60 train pairs of 30 prompts and 4 that teach nothing; 8 test pairs, of which 4 are left, in two subsets."""
    folder = tmp_path / "hh"
    train = [pair(f"What is {i}?", " Yes, yes.", f" {side}.") for i in range(30) for side in ("No", "Never")]
    broken = [
        pair("Who?", " Same.", " Same. "),
        pair("Who?", " ", " No."),
        pair("Who?", " A.", " B.\n\nHuman: C"),
        {"chosen": pair("Who?", " A.", "")["chosen"], "rejected": pair("Where?", " B.", "")["chosen"]},
    ]
    write(folder, "a/train.jsonl", train + broken)
    first = "\n\nHuman: Good day.\n\nAssistant: Hello."
    test = [
        pair("What  is 3?", " Yes.", " No."),  # in train but for a blank
        pair("Who sings?", " Dogs, cats, cows.", " No."),
        pair("Who sings?", " Cows.", " No."),  # again
        pair("Who sings?", " Cows.", " No no no no.", before=first),
        broken[0],
    ]
    write(folder, "a/test.jsonl", test)
    more = [pair("word " * 40, " Yes.", " No."), pair("Who?", " Yes.", " no" * 40), broken[1]]
    write(folder, "b/test.jsonl", more)
    return folder


def test_counts(monkeypatch, world, data, tmp_path, capsys):
    analyse(monkeypatch, world, data, tmp_path / "out", max_prompt_tokens=40, max_completion_tokens=32)
    result = tmp_path / "out/data"
    summary = json.loads((result / "data.json").read_text())
    broken = {"sides are equal": 1, "a side is empty": 1, "a reply holds another turn": 1, "prompts differ": 1}
    assert summary["contract"] == {"train": broken, "test": {"sides are equal": 1, "a side is empty": 1}}

    splits = summary["splits"]
    assert sum(splits[name]["prompts"] for name in ("sft", "reward", "policy", "gold", "validation")) == 30
    assert splits["policy"]["rows"] * 2 == splits["policy"]["rows"] + splits["policy"]["dropped"]["prompt repeated"]
    test = splits["eval"]
    assert (test["rows"], test["prompts"], test["kept"]) == (4, 4, 2)
    assert test["dropped"] == {
        "prompt also in the train split": 1,
        "prompt repeated": 1,
        "prompt too long": 1,
        "reply too long": 1,
        **dict.fromkeys(REASONS, 0),
    }
    assert test["subsets"] == {"a": 2, "b": 2}
    assert test["turns"] == {"1": 3, "2": 1}
    assert test["several_turns"] == 0.25
    assert test["length_bias"]["chosen_longer"]["mean"] == 0.5

    assert len(summary["overlaps"]) == 15
    assert not any(overlap["prompts"] for overlap in summary["overlaps"])
    text = (result / "DATA.md").read_text()
    assert "WARNING" not in text
    assert "| train | prompts differ | 1 |" in text
    assert all((result / f"lengths.{ending}").stat().st_size for ending in ("png", "svg"))
    assert capsys.readouterr().out.rstrip().endswith(f"is in {result / 'DATA.md'}")


def test_lengths_are_those_that_training_meets(monkeypatch, world, data, tmp_path):
    from rlhf_trl.tokens import build_dataset

    analyse(monkeypatch, world, data, tmp_path / "out", tokenizer=world / "gpt2")  # with a chat template
    with (tmp_path / "out/data/pairs.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "reward" and row["kept"] == "True"]
    dataset = build_dataset(DataConfig(str(data)), "reward", load_frame(str(world / "gpt2")), seed=0)
    for side in ("prompt", "chosen", "rejected"):
        assert sorted(int(row[f"{side}_tokens"]) for row in rows) == sorted(map(len, dataset[f"{side}_ids"]))


def test_an_overlap_is_loud(monkeypatch, world, data, tmp_path):
    assert overlaps({"a": {"1", "2"}, "b": {"2"}, "c": {"3"}}) == [
        {"a": "a", "b": "b", "prompts": 1},
        {"a": "a", "b": "c", "prompts": 0},
        {"a": "b", "b": "c", "prompts": 0},
    ]
    leaky = tokenize_split(DataConfig(str(data)), "sft", load_frame(str(world / "model")))
    monkeypatch.setattr("eval.data.tokenize_split", lambda config, name, frame: leaky)
    analyse(monkeypatch, world, data, tmp_path / "out")
    text = (tmp_path / "out/data/DATA.md").read_text()
    assert "**WARNING: splits overlap." in text
    assert "prompts are both in reward and in eval" in text


def test_other_files_are_not_replaced(monkeypatch, world, data, tmp_path, capsys):
    write(tmp_path / "out/data", "train.jsonl", [])
    with pytest.raises(SystemExit, match="2"):
        analyse(monkeypatch, world, data, tmp_path / "out")
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "out/data/train.jsonl").exists()
