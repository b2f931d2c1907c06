"""What a model reads, and when a reply ends: decided here, once, for trainers, reward models and evaluation alike.

A row reaches a model as prompt ids + reply ids + what ends a reply. All three follow from what the tokenizer's own chat
template writes around a finished assistant turn; without a template the dialogue is HH's plain text, and eos ends a
reply. Sampled ids are not decoded and tokenized again, but for the score of a reward model that reads other ids.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import date
from pathlib import Path

from jinja2 import TemplateError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, TrainingArguments
from transformers.utils import cached_file
from transformers.utils.chat_template_utils import _compile_jinja_template
from trl import ModelConfig

from rlhf_trl.errors import UserError
from rlhf_trl.hub import check_source, check_weights, lineage

REPLY = "\n\nAssistant:"
TURN = re.compile(r"\n\n(Human|Assistant):")
TODAY = date(2024, 7, 26)  # in templates that print the date: with the true one, prompts would be others tomorrow
PAD = "<|pad|>"
TOKENIZER = "tokenizer_config.json"
QUIETLY = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
TOKEN_OPTIONS = ("eos_token", "pad_token", "chat_template_path")
# Stand for a question and a reply where only what the template writes around them is wanted
QUESTION, MARKER = [{"role": "user", "content": "Hi"}], "REPLY-b5c1f0"
EXAMPLES = ("\n\nHuman: One?\n\nAssistant: Two.\n\nHuman: Three?\n\nAssistant:", "\n\nHuman: One?\n\nAssistant:")
ANCHORS = ("\n", ".", "a")  # texts that a reply can be tokenized behind
# Why a row cannot be put into a frame
REASONS = SPECIAL, REFUSED, CHANGED, MERGED = (
    "special token in the text",
    "refused by the chat template",
    "changed by the chat template",
    "reply cannot be told from the prompt",
)


class RowError(ValueError):
    """A row that cannot be put into the frame. The message is the reason that it is counted by."""


class Frame:
    """What the model of `tokenizer` reads around a reply.

    Making one sets the tokenizer's eos to what ends a reply, so that trainers, and whoever loads the saved tokenizer,
    stop there too.

    Attributes:
        end: ids that end a finished reply. Sampling stops at the last one; those before it belong to the reply.
        rest: ids that the template writes after that, which only a reward model that is not ours reads.
        ends: ids at any of which a reply is finished: the last of `end`, the tokenizer's own eos, and those given.

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
        self.control = _control_tokens(tokenizer)
        self.before = _written_before(tokenizer)
        newline, a, both = self._ids(["\n", "a", "\na"])
        self.anchors = ANCHORS if both != newline + a else ("",)
        self.parts, self.lead = False, ""
        if tokenizer.chat_template:
            try:
                _compile_jinja_template(tokenizer.chat_template).globals["strftime_now"] = TODAY.strftime
            except TemplateError as error:
                raise UserError(f"the chat template is broken ({error}); set chat_template_path to another") from error
            self._find_parts()
            self.lead = self._find_lead()
        self.space, end, rest = self._behind() or ("", tokenizer.eos_token, "")
        if end is None:
            raise UserError("nothing ends a reply: the tokenizer has no eos token; set eos_token to one of its tokens")
        self.end = tokenizer.convert_tokens_to_ids(self.control.findall(end))
        end_ids, whole_ids = self._ids([end, end + rest])
        self.rest = whole_ids[len(end_ids) :] if whole else []
        others = {tokenizer.eos_token_id, *ends} - {None, *self.end}
        self.ends = others | {self.end[-1]}
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(self.end[-1])

    def rows(self, rows: list[dict]) -> list[dict]:
        """Preference rows as the model reads them.

        Adds `dialogue` (the row's own prompt), `prompt_ids`, `chosen_ids` and `rejected_ids` (finished), `length`
        (tokens of the prompt with the longer reply), `apart` (whether prompt and reply would be other tokens if
        tokenized as one text) and `dropped`, the reason why the row cannot be used, or "".
        """
        rows = [self._write(row) for row in rows]
        written = [row for row in rows if not row["dropped"]]
        prompts = [row["prompt"] for row in written]
        for row, ids in zip(written, self._prompt_ids(prompts), strict=True):
            row["prompt_ids"] = ids
        for side in ("chosen", "rejected"):
            replies = self._reply_ids(prompts, [row[side] + self.space for row in written])
            for row, (ids, apart) in zip(written, replies, strict=True):
                row["apart"] |= apart
                row[f"{side}_ids"] = [*(ids or ()), *self.end, *self.rest]
                row["dropped"] = row["dropped"] or MERGED * (ids is None)
        pads = {self.tokenizer.pad_token_id} - self.ends
        for row in written:
            parts = prompt, chosen, rejected = [row[f"{part}_ids"] for part in ("prompt", "chosen", "rejected")]
            row["length"] = len(prompt) + max(len(chosen), len(rejected))
            if any(pads.intersection(ids) for ids in parts):
                row["dropped"] = SPECIAL  # an unknown character, say, where that token pads
        return rows

    def _write(self, row: dict) -> dict:
        """The texts of a preference row as the model reads them, with no ids yet."""
        ids = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": [], "length": 0, "apart": False, "dropped": ""}
        row = {**row, "dialogue": row["prompt"], **ids}
        if any(self.control.search(row[name]) for name in ("prompt", "chosen", "rejected")):
            return row | {"dropped": SPECIAL}
        try:
            prompt = self.prompt(row["dialogue"])
        except RowError as reason:
            return row | {"dropped": str(reason)}
        return row | {"prompt": prompt} | {side: self.reply(row[side]) for side in ("chosen", "rejected")}

    def prompt(self, dialogue: str) -> str:
        """A dialogue (see `messages`) as the model reads it up to the reply.

        Raises:
            RowError: the chat template does not take such a dialogue.
        """
        if not self.tokenizer.chat_template:
            return dialogue
        return self._around(messages(dialogue.removesuffix(REPLY)))[0].removesuffix(self.lead)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of what `prompt` returned: with bos once where the tokenizer adds one, and without eos."""
        return self._prompt_ids([prompt])[0]

    def _prompt_ids(self, prompts: list[str]) -> list[list[int]]:
        known = len(self.before)
        return [ids if ids[:known] == self.before else self.before + ids for ids in self._ids(prompts)]

    def reply(self, text: str) -> str:
        """A reply as it stands in the frame: templates strip it, plain HH text begins with a space."""
        return self.lead + text.strip() if self.tokenizer.chat_template else text

    def reply_ids(self, prompt: str, reply: str, finished: bool = True) -> tuple[list[int], bool]:
        """Ids of a reply as it follows on what `prompt` returned; and whether they had to be found apart from it, as
        the last characters of the one and the first of the other are a token together.

        Raises:
            RowError: the tokenizer cannot tell the reply from what stands before it.
        """
        ids, apart = self._reply_ids([prompt], [reply + self.space * finished])[0]
        if ids is None:
            raise RowError(MERGED)
        return ids + (self.end + self.rest) * finished, apart

    def _reply_ids(self, prompts: list[str], replies: list[str]) -> list[tuple[list[int] | None, bool]]:
        """The same for many, before what ends them; None for ids that cannot be told."""
        tails = [self._tail(prompt) for prompt in prompts]
        different = list(set(tails))
        starts = dict(zip(different, self._ids(different), strict=True))
        joint = self._ids([tail + reply for tail, reply in zip(tails, replies, strict=True)])
        result = []
        for tail, reply, ids in zip(tails, replies, joint, strict=True):
            follows = ids[: len(starts[tail])] == starts[tail]
            result.append((ids[len(starts[tail]) :], False) if follows else (self._ids_apart(reply), True))
        return result

    def _ids_apart(self, reply: str) -> list[int] | None:
        for anchor in self.anchors:
            start, ids = self._ids([anchor, anchor + reply])
            if ids[: len(start)] == start:
                return ids[len(start) :]
        return None

    def _tail(self, prompt: str) -> str:
        """A prompt from its last special token, or else its last word."""
        start = max((match.start() for match in self.control.finditer(prompt)), default=None)
        if start is None:
            *_, last_word = prompt.rstrip().rsplit(None, 1) or [""]
            start = len(prompt.rstrip()) - len(last_word)
        return prompt[start:]

    def finished(self, reply_ids: list[int]) -> bool:
        """Whether sampled ids end a reply."""
        return bool(reply_ids) and reply_ids[-1] in self.ends

    def cut(self, ids: list[int]) -> list[int]:
        """Sampled ids up to the first that ends the reply."""
        return ids[: next((i for i, token in enumerate(ids) if token in self.ends), len(ids)) + 1]

    def text(self, reply_ids: list[int]) -> str:
        """A sampled reply as its reader sees it."""
        stop = len(reply_ids)
        while stop and (reply_ids[stop - 1] in self.ends or reply_ids[stop - 1] in self.end):
            stop -= 1
        return self.tokenizer.decode(reply_ids[:stop], skip_special_tokens=True)

    def generation_config(self) -> GenerationConfig:
        """Settings to save with a model and to sample it with: where a reply ends, the frame's own end first."""
        ends = [self.end[-1], *sorted(self.ends - {self.end[-1]})]
        return GenerationConfig(
            eos_token_id=ends if len(ends) > 1 else ends[0],
            pad_token_id=self.end[-1] if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id,
        )

    def differs_from(self, other: "Frame") -> str | None:
        """What keeps two models from reading the same ids: the vocabulary, the frame, or None if nothing does.

        A pad token is never read and may differ; and what follows on the end of a reply.
        """
        ours, theirs = (
            {token: i for token, i in frame.tokenizer.get_vocab().items() if token != frame.tokenizer.pad_token}
            for frame in (self, other)
        )
        pads = {self.tokenizer.pad_token, other.tokenizer.pad_token}
        if (ours.keys() ^ theirs.keys()) - pads or any(ours[token] != theirs[token] for token in ours.keys() & theirs):
            return "vocabulary"
        ours, theirs = self._example(), other._example()
        return None if ours and ours == theirs else "frame"

    def _example(self) -> list[list[int]] | None:
        """Ids of a dialogue of several turns, or else of one, without `rest`; None if the template takes neither."""
        for prompt in EXAMPLES:
            (row,) = self.rows([{"prompt": prompt, "chosen": " Five, six.", "rejected": " No."}])
            if not row["dropped"]:
                replies = [row[f"{side}_ids"][: -len(self.rest) or None] for side in ("chosen", "rejected")]
                return [row["prompt_ids"], *replies]
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
        try:
            return self.tokenizer.apply_chat_template(
                chat,
                tokenize=False,
                enable_thinking=False,  # read by templates of hybrid reasoning models, ignored by the others
                **options,
            )
        except Exception as error:  # a template is a program of somebody's
            raise RowError(REFUSED) from error

    def _find_parts(self) -> None:
        for parts in (False, True):
            self.parts = parts
            with suppress(RowError):
                self._around(QUESTION)
                return
        raise UserError("the chat template does not show where a reply stands; set chat_template_path to another")

    def _find_lead(self) -> str:
        """Whitespace that the template writes between its generation prompt and a reply. It is the reply's: the words
        that a model knows begin with a space (`▁Sure`), and none was trained on to follow one that stands alone."""
        before = self._around(QUESTION)[0]
        with suppress(RowError):
            start = self._render(QUESTION, add_generation_prompt=True)
            if before.startswith(start) and not before[len(start) :].strip():
                return before[len(start) :]
        return ""

    def _behind(self) -> tuple[str, str, str] | None:
        """What the template writes behind a reply: whitespace, an unbroken run of special tokens, and the rest. Where
        there is no such run, what a next turn of the user begins with; None if nothing is found."""
        if self.tokenizer.chat_template:
            for after in ((), QUESTION):
                with suppress(RowError):
                    behind = self._around(QUESTION, after)[1]
                    if match := re.match(rf"(\s*)((?:{self.control.pattern})+)", behind):
                        return *match.groups(), "" if after else behind[match.end() :]
        return None


def load_frame(
    source: str,
    *,
    revision: str = "main",
    trust_remote_code: bool = False,
    eos_token: str | None = None,
    chat_template_path: str | None = None,
    whole: bool = False,
) -> Frame:
    """The frame of a model folder, hub model or adapter.

    Args:
        eos_token: what ends a reply where the chat template does not say.
        chat_template_path: a jinja file, or a folder or hub model whose template is taken.
        whole: see `Frame`.

    Raises:
        UserError: the model cannot be had, or an option does not fit its tokenizer.
    """
    check_source(source)
    tokenizer = _load_tokenizer(source, revision, trust_remote_code)
    if eos_token is not None:
        if eos_token not in tokenizer.get_vocab():
            raise UserError(f"eos_token {eos_token} is not in the vocabulary of {source}; name one of its tokens")
        tokenizer.eos_token = eos_token
    if chat_template_path is not None:
        tokenizer.chat_template = _read_template(chat_template_path, tokenizer, trust_remote_code)
    try:
        frame = Frame(tokenizer, _ends_of(source, revision, trust_remote_code), whole)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    if eos_token not in (None, tokenizer.eos_token):
        raise UserError(
            f"eos_token {eos_token} does not end a reply in the chat template of {source}, {tokenizer.eos_token} does; "
            "leave it out, or set chat_template_path to a template that fits"
        )
    return frame


def start_frame(model: ModelConfig, args: TrainingArguments) -> Frame:
    """The frame that a recipe trains in: that of the model it starts from, with what its options say of tokens."""
    check_source(model.model_name_or_path)
    check_weights(model.model_name_or_path)
    eos_token, pad_token, template = (getattr(args, name, None) for name in TOKEN_OPTIONS)
    frame = load_frame(
        model.model_name_or_path,
        revision=model.model_revision,
        trust_remote_code=model.trust_remote_code,
        eos_token=eos_token,
        chat_template_path=template,
    )
    return set_pad(frame, model.model_name_or_path, pad_token)


def set_pad(frame: Frame, source: str, pad_token: str | None) -> Frame:
    """Give the tokenizer a pad token that ends no reply: the one named, its own, or a new one where its own is one of
    several ends. If pad were an end, trainers would mask it, and the policy would never learn to stop.

    Raises:
        UserError: there is none.
    """
    tokenizer = frame.tokenizer
    if pad_token is None and tokenizer.pad_token_id in frame.ends - {frame.end[-1]}:
        pad_token = PAD
    if pad_token:
        tokenizer.add_special_tokens({"pad_token": pad_token})
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in frame.ends:
        raise UserError(
            f"the tokenizer of {source} has no pad token besides eos; "
            "set pad_token to one of its unused tokens or to a new one such as '<|pad|>'"
        )
    frame.control = _control_tokens(tokenizer)
    return frame


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


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern:
    """Finds tokens that are no text: special ones, and other added ones that the chat template writes."""
    template = tokenizer.chat_template or ""
    added = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content.strip() and token.content in template)
    ]
    tokens = sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tokens)) or "(?!)")


def _written_before(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that the tokenizer itself puts before a text: bos, or nothing."""
    text = "\n\nHuman: Hi"
    ids, plain = tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
    return next((ids[:i] for i in range(len(ids)) if ids[i : i + len(plain)] == plain), [])


def _ends_of(source: str, revision: str, trust_remote_code: bool) -> list[int]:
    """Where the model's own generation settings, or else its config, stop."""
    models = lineage(source, revision)
    for name, its_revision in models:
        with suppress(OSError):
            return _listed(GenerationConfig.from_pretrained(name, revision=its_revision).eos_token_id)
    whole, its_revision = models[-1]
    config = AutoConfig.from_pretrained(whole, revision=its_revision, trust_remote_code=trust_remote_code)
    return _listed(config.get_text_config().eos_token_id)


def _listed(ends: int | list[int] | None) -> list[int]:
    return ends if isinstance(ends, list) else [ends]


def _load_tokenizer(source: str, revision: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The model's, or if it is an adapter that has none, that of what it stands on."""
    for name, its_revision in lineage(source, revision):
        if cached_file(name, TOKENIZER, revision=its_revision, **QUIETLY):
            break
    try:
        return AutoTokenizer.from_pretrained(
            name, revision=its_revision, trust_remote_code=trust_remote_code, padding_side="left"
        )
    except Exception as error:  # of many unrelated types, most of which do not say what they are about
        if "trust_remote_code" in str(error):
            remedy = "it comes with code of its own: read that, and set trust_remote_code: true to run it"
            raise UserError(f"the tokenizer of {name} cannot be loaded; {remedy}") from error
        raise UserError(f"the tokenizer of {name} cannot be loaded ({error}); fetch its files again") from error


def _read_template(path: str, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool) -> str:
    if Path(path).suffix in (".jinja", ".j2"):
        try:
            return Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the chat template {path} cannot be read ({error}); check the path") from error
    check_source(path, "chat_template_path")
    source = _load_tokenizer(path, "main", trust_remote_code)
    if not source.chat_template:
        raise UserError(f"{path} has no chat template; set chat_template_path to a model that has, or a .jinja file")
    template = source.get_chat_template()
    missing = set(_control_tokens(source).findall(template)) - tokenizer.get_vocab().keys()
    if missing:  # which would have to be added, and learned
        raise UserError(f"the chat template of {path} needs {min(missing)}, which the tokenizer lacks; use another")
    return template
