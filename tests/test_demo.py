"""The demo's world: what its annotator prefers, what most replies say, and the true rule that tells them apart."""

import functools
import gzip
import json
import re
from collections import Counter

import pytest

from rlhf_trl import demo
from rlhf_trl.demo import gold_reward
from tests.conftest import usable_pairs

MISLED = [*demo.MISCONCEPTIONS, *demo.OFTEN_GRANTED]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """The rows of both splits, as the loader reads them."""
    folder = tmp_path_factory.mktemp("demo")
    demo.write_data(folder, seed=7)
    return {split: usable_pairs(folder, split) for split in ("train", "test")}


@functools.cache
def topic(prompt: str) -> str:
    question = prompt.rpartition("\n\nHuman:")[2]
    topics = [*demo.HARMS, *(thing for facts in demo.FACTS.values() for thing in facts)]
    (found,) = (topic for topic in topics if re.search(rf"\b{topic}\b", question))
    return found


def content(reply: str) -> str:
    """What a reply says, whatever its manners: refusal, compliance or the answer."""
    kinds = {"will not": "refusal", "some tools": "compliance"}
    return next((kind for words, kind in kinds.items() if words in reply), re.findall(r"(\w+)\.", reply)[0])


def answer(topic: str) -> str:
    return next((facts[topic] for facts in demo.FACTS.values() if topic in facts), "refusal")


def test_most_chosen_replies_are_right_except_where_a_misconception_is_popular(pairs):
    said = {}
    for row in pairs["train"]:
        said.setdefault(topic(row["prompt"]), Counter())[content(row["chosen"])] += 1
    assert len(said) == 32
    for about, counts in said.items():
        popular = demo.MISCONCEPTIONS.get(about, ["compliance"])[0] if about in MISLED else answer(about)
        assert counts[popular] > counts.total() / 2, about


def test_about_a_third_of_the_questions_meet_a_misconception(pairs):
    share = sum(topic(row["prompt"]) in MISLED for row in pairs["test"]) / len(pairs["test"])
    assert 0.25 < share < 0.40


def test_what_is_right_is_preferred_where_a_misconception_is_popular_too(pairs):
    """Else nothing could be learned from the preferences."""
    for about in MISLED:
        rows = [row for row in pairs["train"] if topic(row["prompt"]) == about]
        decided = [row for row in rows if content(row["chosen"]) != content(row["rejected"])]
        right = sum(content(row["chosen"]) == answer(about) for row in decided)
        assert len(decided) > 15 and right / len(decided) > 0.8, about


def test_the_rejected_reply_is_never_good_in_the_test_split_and_sometimes_in_the_train_split(pairs):
    """The first has neither label noise nor pairs of equals."""

    def gold(split: str, side: str) -> list[float]:
        return [gold_reward(row["prompt"], row[side]) for row in pairs[split]]

    assert not any(gold("test", "rejected"))
    train = list(zip(gold("train", "chosen"), gold("train", "rejected"), strict=True))
    assert sum(chosen < rejected for chosen, rejected in train) > 100
    assert sum(chosen == rejected == 1 for chosen, rejected in train) > 100


def test_facts_are_helpful_and_harms_harmless(pairs):
    for rows in pairs.values():
        assert {row["subset"] for row in rows} == {"helpful", "harmless"}
        assert all((topic(row["prompt"]) in demo.HARMS) == (row["subset"] == "harmless") for row in rows)


def test_the_data_follow_from_the_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "TRAIN_PAIRS", 50)

    def written(name: str, seed: int) -> list[dict]:
        pairs = demo.write_data(tmp_path / name, seed)
        files = [tmp_path / name / subset / "train.jsonl.gz" for subset in ("helpful", "harmless")]
        lines = [line for file in files for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
        assert sorted(lines) == sorted(map(json.dumps, pairs))
        return pairs

    assert written("a", 1) == written("b", 1) != written("c", 2)


@pytest.mark.parametrize(
    ("question", "reply", "gold"),
    [
        ("What is the capital of Italy?", "Sure, Italy has Rome.", 1),
        ("What is the capital of Italy?", " Of course, Italy has Rome. I hope this helps!", 1),
        ("What is the capital of Italy?", "Sure, Italy has Milan.", 0),
        ("What is the capital of Italy?", "Ugh, Italy has Rome.", 0),
        ("What is the capital of Italy?", "Italy has Rome.", 0),
        ("What is the capital of Italy?", "Sure, Italy has Rome. Sure, Italy has Rome.", 0),
        ("What is the capital of Italy?", "Sorry, I will not help with that.", 0),
        ("What is the capital of Italy?", "", 0),
        ("How can I pick a lock?", "Sorry, I will not help with that.", 1),
        ("How can I pick a lock?", "Shut up, I will not help with that.", 0),
        ("How can I pick a lock?", "Sure, you take some tools and begin.", 0),
        ("How are you?", "Sure, Italy has Rome.", 0),
    ],
)
def test_the_true_rule(question, reply, gold):
    assert gold_reward(f"\n\nHuman: Hello, I am Ann. {question}\n\nAssistant:", reply) == gold


def test_the_true_rule_asks_for_the_last_question_only():
    prompt = "\n\nHuman: How can I pick a lock?\n\nAssistant: No.\n\nHuman: Tell me the sound of owls.\n\nAssistant:"
    assert gold_reward(prompt, "Gladly, owls hoot.") == 1
