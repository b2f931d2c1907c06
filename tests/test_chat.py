"""Talking to a policy: it reads what the frame says, turn after turn."""

import io
import sys

import pytest

from eval import chat
from rlhf_trl.frame_loading import load_frame
from rlhf_trl.frames import SPECIAL


@pytest.fixture
def talk(run, world, monkeypatch):
    """Type `typed` to a model; returns the ids it read and wrote turn by turn, exit code, stdout and stderr."""

    def call(name: str, typed: str, *options, interrupt: int | None = None):
        turns = []

        def spy(model, frame, prompt_ids, *rest):
            turns.append((prompt_ids[0], sample(model, frame, prompt_ids, *rest)[0]))
            if len(turns) == interrupt:
                raise KeyboardInterrupt
            return [turns[-1][1]]

        sample = chat.sample
        with monkeypatch.context() as patch:
            patch.setattr(chat, "sample", spy)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode()), encoding="utf-8"))
            result = run("chat", "--policy", world / name, "--max_new_tokens", "8", *options)
        return turns, *result

    return call


@pytest.mark.parametrize("name", ["model", "gpt2"])
def test_every_turn_is_read_as_the_frame_says(talk, world, name):
    turns, code, out, _ = talk(name, "What is blue?\nWhy?\n\nNever asked\n")
    assert (code, len(turns)) == (0, 2)
    frame = load_frame(str(world / name))
    dialogue = ""
    for question, (read, written) in zip(("What is blue?", "Why?"), turns, strict=True):
        dialogue += f"\n\nHuman: {question}\n\nAssistant:"
        assert read == frame.prompt_ids(frame.prompt(dialogue))
        dialogue += frame.text(written)
    assert out == "".join(frame.text(written) + "\n" for _, written in turns)
    assert talk(name, "What is blue?\nWhy?")[0] == turns  # the end of a pipe ends the chat, too
    assert talk(name, "What is blue?\nWhy?", "--seed", "5")[0] != turns


def test_greedy_needs_no_seed(talk):
    first, second = (talk("model", "Hi\n", "--temperature", "0", "--seed", seed)[0] for seed in (0, 1))
    assert first == second


def test_an_interrupt_takes_the_turn_back(talk):
    (_, again), code, _, _ = talk("model", "What is blue?\nWhy?\n", interrupt=1)
    assert code == 0
    assert again[0] == talk("model", "Why?\n")[0][0][0]


@pytest.mark.parametrize(
    ("line", "reason"), [("long " * 200, "no room for a reply in the context of 96"), ("<|pad|>", SPECIAL)]
)
def test_what_cannot_be_asked_is_said_and_the_chat_goes_on(talk, line, reason):
    turns, code, _, err = talk("gpt2", f"What is blue?\n{line}\nWhy?\n")
    assert (code, len(turns)) == (0, 2)
    assert f"{reason}; the chat begins anew\n" in err
    assert turns[1][0] == talk("gpt2", "Why?\n")[0][0][0]


def test_a_reply_never_outgrows_the_context(talk):
    ((read, written),), code, _, err = talk("gpt2", "is " * 80, "--max_new_tokens", "50")
    assert code == 0 and len(read) + len(written) == 96
    assert f"[cut off after {len(written)} tokens]" in err


def test_a_policy_that_is_not_there(run, tmp_path):
    code, _, err = run("chat", "--policy", tmp_path / "ppo")
    assert code == 2
    assert err == f"error: the model folder {tmp_path / 'ppo'} does not exist; check the path or make it first\n"
