"""What a model reads, and when a reply ends: decided here, once, for trainers, reward models and evaluation alike.

A row reaches a model as prompt ids + reply ids + what ends a reply. All three follow from what the tokenizer's own chat
template writes around a finished assistant turn; without a template the dialogue is HH's plain text, and eos ends a
reply. Sampled ids are not decoded and tokenized again, but for the score of a reward model that reads other ids.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import date

from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from rlhf_trl.errors import UserError

REPLY = "\n\nAssistant:"
TURN = re.compile(r"\n\n(Human|Assistant):")
TODAY = date(2024, 7, 26)  # in templates that print the date: with the true one, prompts would be others tomorrow
# Stand for a question and a reply where only what the template writes around them is wanted
QUESTION, MARKER = [{"role": "user", "content": "Hi"}], "REPLY-b5c1f0"
EXAMPLES = ("\n\nHuman: One?\n\nAssistant: Two.\n\nHuman: Three?\n\nAssistant:", "\n\nHuman: One?\n\nAssistant:")
ANCHORS = ("\n", ".", "a")  # texts that a reply can be tokenized behind
SIDES = ("chosen", "rejected")
# Why a row cannot be put into a frame
REASONS = SPECIAL, REFUSED, CHANGED, MERGED = (
    "special token in the text",
    "refused by the chat template",
    "changed by the chat template",
    "reply cannot be told from the prompt",
)


class RowError(ValueError):
    """A row that cannot be used. The message is the reason that it is counted by."""


class Frame:
    """What the model of `tokenizer` reads around a reply.

    Making one sets the tokenizer's eos to what ends a reply, so that trainers, and whoever loads the saved tokenizer,
    stop there too.

    Attributes:
        end: ids that end a finished reply. Sampling stops at the last one; those before it belong to the reply.
        rest: ids that the template writes after that, which only a reward model that is not ours reads.
        ends: ids at any of which a reply is finished: the last of `end`, the tokenizer's own eos, and those given.
        control: finds tokens that are no text.

    Args:
        ends: ids at which the model's own generation settings stop.
        whole: keep what the template writes after the end, as `rest`.

    Raises:
        UserError: the chat template does not show where a reply stands, or nothing ends a reply.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Iterable[int] = (), whole: bool = False) -> None:
        self.tokenizer = tokenizer
        if isinstance(tokenizer.chat_template, dict):  # of several, the one for chats without tools
            tokenizer.chat_template = tokenizer.get_chat_template()
        self.control = control_tokens(tokenizer)
        text = "\n\nHuman: Hi"
        ids, plain = tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
        # What the tokenizer itself puts before a text: bos, or nothing
        self.bos = next((ids[:i] for i in range(len(ids)) if ids[i : i + len(plain)] == plain), [])
        newline, a, both = self._ids(["\n", "a", "\na"])
        self.anchors = ANCHORS if both != newline + a else ("",)
        self.parts, self.lead, self.space, end, rest = False, "", "", tokenizer.eos_token, ""
        if tokenizer.chat_template:
            self._find_start()
            self.space, end, rest = self._find_end()
        if end is None:
            raise UserError("nothing ends a reply: the tokenizer has no eos token; set eos_token to one of its tokens")
        self.end = tokenizer.convert_tokens_to_ids(self.control.findall(end))
        end_ids, whole_ids = self._ids([end, end + rest])
        self.rest = whole_ids[len(end_ids) :] if whole else []
        others = {tokenizer.eos_token_id, *ends} - {None, *self.end}
        self.ends = others | {self.end[-1]}
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(self.end[-1])

    def _find_start(self) -> None:
        """Find whether the template takes messages as texts or in parts, and the whitespace that it writes between its
        generation prompt and a reply. That is the reply's: the words that a model knows begin with a space (`▁Sure`),
        and none was trained on to follow one that stands alone."""
        try:
            _compile_jinja_template(self.tokenizer.chat_template).globals["strftime_now"] = TODAY.strftime
        except TemplateError as error:
            raise UserError(f"the chat template is broken ({error}); set chat_template_path to another") from error
        for self.parts in (False, True):
            with suppress(RowError):
                before, _ = self._around(QUESTION)
                break
        else:
            raise UserError("the chat template does not show where a reply stands; set chat_template_path to another")
        with suppress(RowError):
            start = self._render(QUESTION, add_generation_prompt=True)
            if before.startswith(start) and before[len(start) :].isspace():
                self.lead = before[len(start) :]

    def _find_end(self) -> tuple[str, str | None, str]:
        """What the template writes behind a reply: whitespace, an unbroken run of special tokens, and the rest. Where
        there is no such run, what a next turn of the user begins with; eos if that is no such run either."""
        for after in ((), QUESTION):
            with suppress(RowError):
                _, behind = self._around(QUESTION, after)
                if match := re.match(rf"(\s*)((?:{self.control.pattern})+)", behind):
                    return *match.groups(), "" if after else behind[match.end() :]
        return "", self.tokenizer.eos_token, ""

    def rows(self, rows: list[dict]) -> list[dict]:
        """Preference rows as the model reads them.

        Adds `dialogue` (the row's own prompt), `prompt_ids`, `chosen_ids` and `rejected_ids` (finished), `length`
        (tokens of the prompt with the longer reply), `apart` (whether prompt and reply would be other tokens if
        tokenized as one text) and `dropped`, the reason why the row cannot be used, or "".
        """
        rows = [self._texts(row) for row in rows]
        written = [row for row in rows if not row["dropped"]]
        prompts = [row["prompt"] for row in written]
        pads = {self.tokenizer.pad_token_id} - self.ends
        sides = [self._reply_ids(prompts, [row[side] + self.space for row in written]) for side in SIDES]
        for row, ids, *replies in zip(written, self._ids(prompts), *sides, strict=True):
            prompt = self._with_bos(ids)
            row["apart"] = any(apart for _, apart in replies)
            chosen, rejected = ([*(ids or ()), *self.end, *self.rest] for ids, _ in replies)
            row |= {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
            row["length"] = len(prompt) + max(len(chosen), len(rejected))
            if any(ids is None for ids, _ in replies):
                row["dropped"] = MERGED
            if pads.intersection(prompt + chosen + rejected):
                row["dropped"] = SPECIAL  # an unknown character, say, where that token pads
        return rows

    def _texts(self, row: dict) -> dict:
        """A preference row with its texts as the model reads them, and no ids yet."""
        ids = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": [], "length": 0, "apart": False, "dropped": ""}
        row = {**row, "dialogue": row["prompt"], **ids}
        if any(self.control.search(row[name]) for name in ("prompt", *SIDES)):
            return row | {"dropped": SPECIAL}
        try:
            return row | {"prompt": self.prompt(row["prompt"])} | {side: self.reply(row[side]) for side in SIDES}
        except RowError as reason:
            return row | {"dropped": str(reason)}

    def prompt(self, dialogue: str) -> str:
        """A dialogue (see `messages`) as the model reads it up to the reply.

        Raises:
            RowError: the chat template does not take such a dialogue.
        """
        if not self.tokenizer.chat_template:
            return dialogue
        return self._around(messages(dialogue.removesuffix(REPLY)))[0].removesuffix(self.lead)

    def reply(self, text: str) -> str:
        """A reply as it stands in the frame: templates strip it, plain HH text begins with a space."""
        return self.lead + text.strip() if self.tokenizer.chat_template else text

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of what `prompt` returned: with bos once where the tokenizer adds one, and without eos."""
        return self._with_bos(self._ids([prompt])[0])

    def reply_ids(self, prompt: str, reply: str, finished: bool = True) -> list[int]:
        """Ids of a reply as it follows on what `prompt` returned.

        Raises:
            RowError: the tokenizer cannot tell the reply from what stands before it.
        """
        ids, _ = self._reply_ids([prompt], [reply + self.space * finished])[0]
        if ids is None:
            raise RowError(MERGED)
        return ids + (self.end + self.rest) * finished

    def _with_bos(self, ids: list[int]) -> list[int]:
        return ids if ids[: len(self.bos)] == self.bos else self.bos + ids

    def _reply_ids(self, prompts: list[str], replies: list[str]) -> list[tuple[list[int] | None, bool]]:
        """Ids of replies, before what ends them; and whether they had to be found apart from their prompts, as the last
        characters of the one and the first of the other are a token together. None for ids that cannot be told."""
        result = []
        for reply, ids in zip(replies, self._ids_behind([*map(self._tail, prompts)], replies), strict=True):
            apart = ids is None
            for anchor in self.anchors:
                if ids is None:
                    (ids,) = self._ids_behind([anchor], [reply])
            result.append((ids, apart))
        return result

    def _ids_behind(self, starts: list[str], texts: list[str]) -> list[list[int] | None]:
        """Ids of each text as it follows on its start; None where a token is of both."""
        different = [*set(starts)]
        known = dict(zip(different, self._ids(different), strict=True))
        joint = self._ids([start + text for start, text in zip(starts, texts, strict=True)])
        pairs = zip((known[start] for start in starts), joint, strict=True)
        return [ids[len(before) :] if ids[: len(before)] == before else None for before, ids in pairs]

    def _tail(self, prompt: str) -> str:
        """A prompt from its last special token, or else its last word."""
        starts = [match.start() for match in self.control.finditer(prompt)]
        *_, last_word = prompt.rstrip().rsplit(None, 1) or [""]
        return prompt[starts[-1] if starts else len(prompt.rstrip()) - len(last_word) :]

    def finished(self, reply_ids: list[int]) -> bool:
        """Whether sampled ids end a reply."""
        return bool(reply_ids) and reply_ids[-1] in self.ends

    def cut(self, ids: list[int]) -> list[int]:
        """Sampled ids up to the first that ends the reply."""
        return ids[: next((i for i, token in enumerate(ids) if token in self.ends), len(ids)) + 1]

    def text(self, reply_ids: list[int]) -> str:
        """A sampled reply as its reader sees it."""
        ids = [*reply_ids]
        while ids and ids[-1] in self.ends.union(self.end):
            ids.pop()
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def generation_config(self) -> GenerationConfig:
        """Settings to save with a model and to sample it with: where a reply ends, the frame's own end first."""
        end, pad = self.end[-1], self.tokenizer.pad_token_id
        ends = [end, *sorted(self.ends - {end})]
        return GenerationConfig(eos_token_id=ends if len(ends) > 1 else end, pad_token_id=end if pad is None else pad)

    def differs_from(self, other: "Frame") -> str | None:
        """What keeps two models from reading the same ids: the vocabulary, the frame, or None if nothing does.

        Pad tokens are never read and may differ; so may what follows on the end of a reply.
        """
        pads = {self.tokenizer.pad_token, other.tokenizer.pad_token}
        vocabularies = (frame.tokenizer.get_vocab().items() for frame in (self, other))
        ours, theirs = ({token: i for token, i in vocabulary if token not in pads} for vocabulary in vocabularies)
        if ours != theirs:
            return "vocabulary"
        example = self._example()
        return None if example and example == other._example() else "frame"

    def _example(self) -> list[list[int]] | None:
        """Ids of a dialogue of several turns, or else of one, without `rest`; None if the template takes neither."""
        for prompt in EXAMPLES:
            (row,) = self.rows([{"prompt": prompt, "chosen": " Five, six.", "rejected": " No."}])
            if not row["dropped"]:
                return [row["prompt_ids"], *(row[f"{side}_ids"][: -len(self.rest) or None] for side in SIDES)]
        return None

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        masks = {"return_attention_mask": False, "return_token_type_ids": False}
        return self.tokenizer(texts, add_special_tokens=False, verbose=False, **masks)["input_ids"]

    def _around(self, before: list[dict], after: list[dict] = ()) -> tuple[str, str]:
        """What the template writes before and behind a reply that stands between these messages."""
        chat = [*before, {"role": "assistant", "content": MARKER}, *after]
        before, *behind = self._render(chat).split(MARKER)
        if len(behind) != 1:
            raise RowError(CHANGED)
        return before, behind[0]

    def _render(self, chat: list[dict], **options) -> str:
        if self.parts:
            chat = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in chat]
        options["enable_thinking"] = False  # read by templates of hybrid reasoning models, ignored by the others
        try:
            return self.tokenizer.apply_chat_template(chat, tokenize=False, **options)
        except Exception as error:  # a template is a program of somebody's
            raise RowError(REFUSED) from error


def messages(dialogue: str) -> list[dict]:
    """Chat messages of a dialogue: in HH's form, or a text without turns, which is the user's. What stands before
    the first turn is a system message; turns of one speaker in a row are joined.

    >>> messages("\\n\\nHuman: Hi\\n\\nAssistant: Hello.")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello.'}]
    """
    start, *turns = TURN.split(dialogue)
    if not turns:
        return [{"role": "user", "content": start.strip()}]
    result = [{"role": "system", "content": start.strip()}] if start.strip() else []
    for speaker, text in zip(turns[::2], turns[1::2], strict=True):
        role = {"Human": "user", "Assistant": "assistant"}[speaker]
        if result and result[-1]["role"] == role:
            result[-1]["content"] += "\n\n" + text.strip()
        else:
            result.append({"role": role, "content": text.strip()})
    return result


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern:
    """Finds tokens that are no text: special ones, and other added ones that the chat template writes."""
    template = tokenizer.chat_template or ""
    added = tokenizer.added_tokens_decoder.values()
    written = {token.content for token in added if token.content.strip() and token.content in template}
    special = {token.content for token in added if token.special}
    tokens = sorted(written | special | {*tokenizer.all_special_tokens}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")
