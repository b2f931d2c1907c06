"""What a model reads: the frame of every template that TRL ships, and one tokenization from SFT to the scores."""

import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trl
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin, LlamaConfig, LlamaForCausalLM, Trainer

from eval import kl
from rlhf_trl import tokens
from rlhf_trl.config import DataConfig
from rlhf_trl.errors import UserError
from rlhf_trl.files import read_jsonl
from rlhf_trl.frame_loading import set_pad
from rlhf_trl.frames import TODAY, Frame
from rlhf_trl.preferences import load_pairs
from tests import zoo
from tests.conftest import settings

TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
WRITTEN = re.compile(r"<[|\uff5c][^<>\s]+?[|\uff5c]?>|<[a-z_]+[|>]>?|</?s>|\[gMASK\]")  # as special tokens are spelled
DIALOGUE = "\n\nHuman: One?\n\nAssistant: Two.\n\nHuman: Three?\n\nAssistant:"
CHAT = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
    {"role": "assistant", "content": "Four."},
]
TEXTS = [DIALOGUE + " Four.", "Hello, how are you? I am well; thank you.\n1. Yes\n2. No"]


def with_template(template):
    tokenizer = zoo.byte_bpe(
        TEXTS, ["<pad>", "<eos>", "<bos>"], bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(WRITTEN.findall(template)) - {"<think>"})})
    tokenizer.chat_template = template
    return tokenizer


def test_trl_ships_the_templates():
    assert len(TEMPLATES) == 63


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_the_frame_is_what_the_template_writes_around_a_finished_turn(path, monkeypatch):
    tokenizer = with_template(path.read_text())
    frame = Frame(tokenizer, whole=True)
    (row,) = frame.rows([{"prompt": DIALOGUE, "chosen": " Four.", "rejected": " Five."}])
    assert not row["dropped"] and not row["apart"]

    chat = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in CHAT] if frame.parts else CHAT
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", SimpleNamespace(now=lambda: TODAY))
    again = with_template(path.read_text() + "{# as it is without a frame #}")
    written = again.apply_chat_template(chat, tokenize=False, enable_thinking=False)
    before, behind = written.rsplit("Four.", 1)
    ends = again.decode(frame.end)
    assert row["prompt"] + row["chosen"] == before + "Four."
    if behind:
        assert behind.startswith(ends) and again.decode(frame.end + frame.rest) == behind
    else:  # what a next turn begins with
        after = again.apply_chat_template([*chat, chat[0]], tokenize=False, enable_thinking=False)
        assert after.rsplit("Four.", 1)[1].startswith(ends)
    assert row["chosen_ids"] == again(row["chosen"] + ends, add_special_tokens=False)["input_ids"] + frame.rest
    assert tokenizer.eos_token_id == frame.end[-1] and set(frame.end[:-1]).isdisjoint(frame.ends)


@pytest.mark.parametrize("template", ["{{ messages[0].content }}", "{% if x %}", "{{ raise_exception('no') }}"])
def test_a_template_that_does_not_show_the_reply_is_refused(template):
    with pytest.raises(UserError, match="chat template"):
        Frame(with_template(template))


def test_rows_that_no_frame_takes_are_dropped_and_counted():
    tokenizer = with_template(next(path for path in TEMPLATES if path.stem == "gemma").read_text())
    frame = Frame(tokenizer)
    first = {"prompt": "\n\nAssistant: Hi.\n\nHuman: Three?\n\nAssistant:", "chosen": " Four.", "rejected": " Five."}
    assert frame.rows([first])[0]["dropped"] == "refused by the chat template"
    command = {"prompt": DIALOGUE, "chosen": " Four.<end_of_turn>", "rejected": " Five."}
    assert frame.rows([command])[0]["dropped"] == "special token in the text"


FAMILIES = {
    "bytes": (zoo.byte_bpe, {}),
    **{f"metaspace-{layout}": (zoo.sentencepiece_like, {"layout": layout}) for layout in ("first", "always", "never")},
    "metaspace-prepend": (zoo.sentencepiece_like, {"layout": "legacy"}),
    "adds-bos": (zoo.sentencepiece_like, {"layout": "legacy", "single": "<bos> $A"}),
    "adds-eos": (zoo.byte_bpe, {"single": "$A <eos>"}),
    "adds-both": (zoo.byte_bpe, {"single": "<bos> $A <eos>"}),
}
ENDINGS = {"plain": None, "space": "{{ m.role }}: ", "newline": "{{ m.role }}:\n"}
OPENINGS = (" Yes, {}.", "\n\n1. One {}.", "No {}.", "\n{}, then.", "  Two spaces {}.", " {}")


def write_pairs(folder):
    """64 pairs whose replies begin in all ways, in HH's files."""
    rows = []
    for i in range(64):
        prompt = f"\n\nHuman: What is {i}?{' ' * (i % 2)}\n\nAssistant:"
        replies = [OPENINGS[(i + j) % len(OPENINGS)].format(i + 10 * j + 1) for j in (0, 1)]
        rows.append(dict(zip(("chosen", "rejected"), (prompt + reply for reply in replies), strict=True)))
    for split in ("train", "test"):
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / f"data/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def write_model(folder, family, ending):
    build, options = FAMILIES[family]
    single = options.get("single")
    specials = ["<pad>", "<eos>", "<bos>"]
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    texts = [row[side] for row in write_pairs(folder) for side in row]
    tokenizer = build(texts, specials, **{key: value for key, value in options.items() if key != "single"}, **names)
    if single:
        ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>")]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ids)
    if ENDINGS[ending]:
        turn = ENDINGS[ending] + "{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n"
        tokenizer.chat_template = "{% for m in messages %}" + turn + "{% endfor %}"
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


class Recorder:
    """Ids as they are in the trainers' own batches and as they reach models. Nothing is trained, and what is sampled is
    in `replies`: token ids by prompt."""

    def __init__(self, monkeypatch):
        self.batches, self.scored, self.compared, self.replies = [], [], [], {}
        monkeypatch.setattr(Trainer, "training_step", lambda *args: self.training_step(*args))
        monkeypatch.setattr(GenerationMixin, "generate", lambda *args, **options: self.generate(*args, **options))
        for place in ("rlhf_trl.rewards.score", "eval.score.score"):
            monkeypatch.setattr(place, self.score)
        monkeypatch.setattr("eval.kl.exact", self.exact)

    def training_step(self, trainer, model, inputs, *_):
        self.batches.append(trainer._prepare_inputs(inputs))  # where GRPO samples
        return torch.tensor(0.0)

    def generate(self, model, input_ids, attention_mask, generation_config, return_dict_in_generate=False, **_):
        longest, pad = generation_config.max_new_tokens, generation_config.pad_token_id or 0
        replies = [self.replies[tuple(ids)] for ids in unpadded(input_ids, attention_mask)]
        padded = torch.tensor([reply + [pad] * (longest - len(reply)) for reply in replies])
        sequences = torch.cat([input_ids, padded], 1)
        if not return_dict_in_generate:
            return sequences
        scores = (torch.zeros(len(replies), model.config.vocab_size),) * longest
        return SimpleNamespace(sequences=sequences, scores=scores)

    def score(self, model, sequences, *_, **__):
        self.scored += map(tuple, sequences)
        return torch.arange(float(len(sequences)))

    def exact(self, policy, reference, prompt_ids, completion_ids, **_):
        self.compared += [tuple(a + b) for a, b in zip(prompt_ids, completion_ids, strict=True)]
        return [0.0] * len(prompt_ids)

    def taken(self, name):
        """What was recorded since it was last asked for."""
        records = getattr(self, name)
        setattr(self, name, [])
        return records


def unpadded(ids, mask):
    return [tuple(row[kept.bool()].tolist()) for row, kept in zip(ids, mask, strict=True)]


@pytest.mark.parametrize(
    ("family", "ending"),
    [
        *zip(FAMILIES, ["plain", "newline", "space"] * 3, strict=False),
        ("bytes", "space"),
        ("metaspace-prepend", "plain"),
    ],
)
def test_all_read_the_same_ids(family, ending, run, tmp_path, monkeypatch):
    """SFT, reward, DPO, PPO, GRPO, best-of-n, samples and scores; finished replies, and cut-off ones where they are."""
    write_model(tmp_path, family, ending)
    rows = load_pairs(DataConfig(str(tmp_path / "data")), "train")
    monkeypatch.setattr(tokens, "load_split", lambda config, name: (rows, Counter(), Counter()))
    recorder = Recorder(monkeypatch)
    shared = {"max_prompt_tokens": 200, "max_completion_tokens": 100, "splits": None}
    batches = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "max_steps": 4}

    def train(recipe, **changes):
        config = settings(tmp_path, recipe, tmp_path, save_strategy="no", **{**shared, **batches, **changes})
        code, _, error = run(recipe, "--config", config)
        assert code == 0, error
        return recorder.taken("batches")

    replies = {}
    for batch in train("sft"):
        labelled = batch["labels"] != -100
        prompts = unpadded(batch["input_ids"], batch["attention_mask"].bool() & ~labelled)
        replies |= dict(zip(prompts, unpadded(batch["labels"], labelled), strict=True))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "sft")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert len(replies) == 64
    assert {tokenizer.decode(reply[:-1]).strip() for reply in replies.values()} == {
        row["chosen"].strip() for row in rows
    }
    for prompt, reply in replies.items():
        assert prompt.count(bos) == (family in ("adds-bos", "adds-both")) and prompt[-1] != eos
        assert reply.count(eos) == 1 and reply[-1] == eos

    pairs = [ids for batch in train("reward") for ids in unpadded(batch["input_ids"], batch["attention_mask"])]
    assert len(pairs) == 128 and {prompt + reply for prompt, reply in replies.items()} < set(pairs)
    model, compared = AutoModelForCausalLM.from_pretrained(tmp_path / "sft"), []
    for batch in train("dpo", beta=0.1):
        compared += unpadded(batch["input_ids"], batch["attention_mask"])
        chosen = unpadded(batch["input_ids"], batch["attention_mask"] - batch["completion_mask"])[:16]
        expected = kl.log_probabilities(model, [[*ids] for ids in chosen], [[*replies[ids]] for ids in chosen])
        for prompt, found, value in zip(chosen, batch["ref_chosen_logps"].tolist(), expected, strict=True):
            assert found == pytest.approx(value, abs=1e-4 * len(replies[prompt]))
    assert sorted(compared) == sorted(pairs)

    longest = max(map(len, replies.values()))
    for i, (prompt, reply) in enumerate(replies.items()):
        cut_off = (list(reply[:-1]) * longest)[:longest]
        recorder.replies[prompt] = cut_off if i % 3 == 0 else list(reply)
    sampled = {(*prompt, *reply) for prompt, reply in recorder.replies.items()}
    recorder.taken("scored")
    options = {"num_mini_batches": 1, "local_rollout_forward_batch_size": 16, "max_steps": -1}
    train("ppo", response_length=longest, total_episodes=64, **options)
    assert set(recorder.taken("scored")) == sampled
    train("grpo", max_completion_length=longest, num_generations=2, steps_per_generation=1, max_steps=8)
    assert set(recorder.taken("scored")) == sampled

    changes = {"prompts": 64, "curve_prompts": 64, "best_of": 2, "max_new_tokens": longest, "probes": None}
    config = settings(tmp_path, "eval", tmp_path, **changes, **shared)
    assert run("samples", "--config", config)[0] == 0
    code, _, error = run("score", "--config", config)
    assert code == 0, error
    assert set(recorder.taken("scored")) == set(recorder.taken("compared")) == sampled
    for name in ("sft", "ppo", "greedy/dpo", "best_of"):
        finished = [row["finished"] for row in read_jsonl(tmp_path / f"samples/{name}.jsonl")]
        assert sum(finished) == len(finished) * 42 / 64


def test_text_that_the_tokenizer_reads_as_pad_is_no_text():
    """An added pad, and a character that is unknown where that token pads."""
    tokenizer = zoo.byte_bpe(TEXTS, ["<eos>", "<unk>"], eos_token="<eos>")
    frame = set_pad(Frame(tokenizer), "model", "<|pad|>")
    row = {"prompt": DIALOGUE, "chosen": " Four.", "rejected": " What is <|pad|>?"}
    assert frame.rows([row])[0]["dropped"] == "special token in the text"
    tokenizer = zoo.sentencepiece_like(TEXTS, ["<eos>"], "legacy", eos_token="<eos>")
    frame = set_pad(Frame(tokenizer), "model", "<unk>")
    assert not frame.rows([{**row, "rejected": " Five."}])[0]["dropped"]
    assert frame.rows([{**row, "rejected": " <unk>"}])[0]["dropped"] == "special token in the text"


def test_of_several_templates_the_default_is_read(tmp_path):
    tokenizer = with_template(TEMPLATES[0].read_text())
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "{{ messages }}"}
    tokenizer.save_pretrained(tmp_path)
    assert Frame(AutoTokenizer.from_pretrained(tmp_path)).end == Frame(with_template(TEMPLATES[0].read_text())).end


def test_frames_that_take_no_example_are_not_alike():
    frames = [Frame(with_template(path.read_text())) for path in TEMPLATES[:1] * 2]
    assert frames[0].differs_from(frames[1]) is None
    for frame in frames:
        frame.tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert frames[0].differs_from(frames[1]) == "frame"
