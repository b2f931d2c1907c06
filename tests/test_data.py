"""The preference row and the splits."""

import gzip
import json
import random
import shutil
from collections import Counter
from dataclasses import replace

import pytest
from datasets import Dataset

from rlhf_trl import tokens
from rlhf_trl.config import SPLITS, DataConfig
from rlhf_trl.errors import UserError
from rlhf_trl.frame_loading import load_frame
from rlhf_trl.frames import Frame, messages
from rlhf_trl.preferences import load_pairs, prompt_key
from rlhf_trl.splits import load_split
from rlhf_trl.tokens import build_dataset
from tests.conftest import CHAT_TEMPLATE

PROMPT = "\n\nHuman: One?\n\nAssistant: Two.\n\nHuman: Three?\n\nAssistant:"


def write(folder, lines, split="train"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(line + "\n" for line in lines))
    return DataConfig(dataset=str(folder))


def pair(chosen, rejected):
    return json.dumps({"chosen": chosen, "rejected": rejected})


def test_rows_are_split_at_the_last_assistant_and_bad_ones_counted(tmp_path):
    config = write(
        tmp_path / "subset",
        [
            pair(PROMPT + " Four.", PROMPT + " Five."),
            pair(PROMPT + " Four.", PROMPT.replace("One", "Ten") + " Five."),
            pair(PROMPT + " ", PROMPT + " Five."),
            pair(PROMPT + " Same.", PROMPT + " Same. "),
            pair(PROMPT + " Four.\n\nHuman: Six?", PROMPT + " Five."),
        ],
    )
    pairs = load_pairs(config, "train").remove_columns(["file", "key"])
    used = {"prompt": PROMPT, "chosen": " Four.", "rejected": " Five.", "subset": ".", "dropped": ""}
    assert [row for row in pairs if not row["dropped"]] == [used]
    assert Counter(filter(None, pairs["dropped"])) == {
        "prompts differ": 1,
        "a side is empty": 1,
        "sides are equal": 1,
        "a reply holds another turn": 1,
    }


def test_subsets_are_chosen_by_data_dir(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name, [pair(PROMPT + f" {name}.", PROMPT + " Other.")])
    rows = load_pairs(DataConfig(dataset=str(tmp_path), data_dir=["two"]), "train")
    assert rows["subset"][:] == ["two"]
    with pytest.raises(UserError, match="no subset three"):
        load_pairs(DataConfig(dataset=str(tmp_path), data_dir=["three"]), "train")


@pytest.mark.parametrize(
    "line", ["no json", "[1]", '{"text": "x"}', pair(1, 2), pair("Hello", "World"), pair("Q\n\nAssistant: a", PROMPT)]
)
def test_what_is_no_hh_data_names_file_and_line(tmp_path, line):
    config = write(tmp_path, [pair(PROMPT + " Four.", PROMPT + " Five."), line])
    with pytest.raises(UserError, match=r"train\.jsonl, line 2: no"):
        load_pairs(config, "train")


def test_a_cut_off_gzip_is_an_error(tmp_path):
    lines = "".join(pair(PROMPT + f" {random.random()}.", PROMPT + " Five.") + "\n" for _ in range(500))
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-900])
    with pytest.raises(UserError, match="damaged, cut off"):
        load_pairs(DataConfig(dataset=str(tmp_path)), "train")


def test_splits_share_no_prompt_and_depend_on_neither_order_nor_size(tmp_path, world):
    config = DataConfig(dataset=str(world / "data"))
    keys = {name: {prompt_key(row["prompt"]) for row in load_split(config, name)[0]} for name in (*SPLITS, "eval")}
    names = list(keys)
    for i, first in enumerate(names):
        assert keys[first]
        for second in names[i + 1 :]:
            assert not keys[first] & keys[second], (first, second)

    shares = {"sft": 0.2, "reward": 0.2, "policy": 0.5, "validation": 0.1}
    other = DataConfig(dataset=config.dataset, splits=shares)
    sizes = {name: len(load_split(other, name)[0]) for name in ("sft", "reward")}
    assert sum(sizes.values()) < 0.5 * sum(len(load_split(config, name)[0]) for name in SPLITS)
    with pytest.raises(UserError, match="give it a share in splits"):
        load_split(other, "gold")

    files = (world / "data").rglob("train.jsonl.gz")
    lines = [line for file in files for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
    random.Random(0).shuffle(lines)
    smaller = write(tmp_path, lines[: len(lines) // 2])
    for name in SPLITS:
        subset = {prompt_key(row["prompt"]) for row in load_split(smaller, name)[0]}
        assert subset < keys[name]


def test_eval_prompts_equal_up_to_whitespace_are_dropped(tmp_path):
    other = "\n\nHuman: Else?\n\nAssistant:"
    write(tmp_path, [pair(PROMPT + " Four.", PROMPT + " Five.")])
    spaced = PROMPT.replace("Three?", "Three? ")
    lines = [pair(spaced + " Four.", spaced + " Five."), pair(other + " a", other + " b")]
    rows, dropped, _ = load_split(write(tmp_path, lines, "test"), "eval")
    assert rows["prompt"][:] == [other]
    assert dropped["prompt also in the train split"] == 1


def test_a_test_set_needs_no_train_set(tmp_path):
    config = write(tmp_path, [pair(PROMPT + " Four.", PROMPT + " Five.")], "test")
    assert len(load_split(config, "eval")[0]) == 1
    with pytest.raises(UserError, match="holds no train split"):
        load_split(config, "sft")


def test_chat_models_get_their_template_and_others_plain_text(world):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    row = {"prompt": PROMPT, "chosen": " Four.", "rejected": " Five."}
    plain = row | {"dialogue": PROMPT}
    assert Frame(tokenizer).rows([row])[0].items() >= plain.items()
    tokenizer.chat_template = CHAT_TEMPLATE
    chat = {
        "dialogue": PROMPT,
        "prompt": "<user>One?<assistant>Two.<user>Three?<assistant>",
        "chosen": "Four.",
        "rejected": "Five.",
    }
    assert Frame(tokenizer).rows([row])[0].items() >= chat.items()


def test_turns_of_one_speaker_are_joined():
    assert messages("\n\nHuman: a\n\nHuman: b") == [{"role": "user", "content": "a\n\nb"}]


def test_what_is_tokenized_once_is_read_from_the_cache_until_something_changes(world, tmp_path, monkeypatch, capsys):
    """Not when only the number of rows or the seed do."""
    tokenized, read = [], Frame.rows
    monkeypatch.setattr(Frame, "rows", lambda frame, rows: tokenized.append(1) or read(frame, rows))
    folder = shutil.copytree(world / "data", tmp_path / "data")
    frame = load_frame(str(world / "model"))
    config = DataConfig(dataset=str(folder), max_completion_tokens=12)

    def build(config, seed=0):
        tokenized.clear()
        capsys.readouterr()
        rows = build_dataset(config, "reward", frame, seed)
        return rows, bool(tokenized), capsys.readouterr().out

    rows, new, said = build(config)
    assert new and "reply too long" in said
    again, new, repeated = build(config)
    assert not new and repeated == said
    assert again.to_list() == rows.to_list()
    few, new, _ = build(replace(config, max_rows=5))
    assert not new and few.to_list() == rows.to_list()[:5]
    other, new, _ = build(config, seed=1)
    assert not new and other.to_list() != rows.to_list()
    assert build(replace(config, max_completion_tokens=13))[1]
    (folder / "helpful").rename(folder / "helpful-base")  # the column `subset` names it
    assert build(config)[1]
    with gzip.open(folder / "helpful-base" / "train.jsonl.gz", "at") as file:
        file.write(pair(PROMPT + " Four.", PROMPT + " Five.") + "\n")
    assert build(config)[1]


def test_several_processes_tokenize_as_one_does(world, monkeypatch):
    frame = load_frame(str(world / "model"))
    one = build_dataset(DataConfig(str(world / "data"), max_prompt_tokens=91), "reward", frame, 0)
    maps, map_rows = [], Dataset.map
    monkeypatch.setattr(Dataset, "map", lambda *args, **options: maps.append(options) or map_rows(*args, **options))
    monkeypatch.setattr(tokens, "FEWEST_ROWS", 20)
    two = build_dataset(DataConfig(str(world / "data"), max_prompt_tokens=92), "reward", frame, 0)  # not from the cache
    assert maps[0]["num_proc"] > 1
    assert two.to_list() == one.to_list()
