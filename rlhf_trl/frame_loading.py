"""The frame of a model: its tokenizer with its chat template, its ends of a reply and its pad token."""

from contextlib import suppress
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, TrainingArguments
from transformers.utils import cached_file
from trl import ModelConfig

from rlhf_trl.errors import UserError
from rlhf_trl.frames import Frame, control_tokens
from rlhf_trl.hub import check_source, check_weights, lineage

PAD = "<|pad|>"
TOKEN_OPTIONS = ("eos_token", "pad_token", "chat_template_path")


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
    source, options = model.model_name_or_path, {name: getattr(args, name, None) for name in TOKEN_OPTIONS}
    pad_token = options.pop("pad_token")
    check_source(source)
    check_weights(source)
    frame = load_frame(source, revision=model.model_revision, trust_remote_code=model.trust_remote_code, **options)
    return set_pad(frame, source, pad_token)


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
    frame.control = control_tokens(tokenizer)
    return frame


def _ends_of(source: str, revision: str, trust_remote_code: bool) -> list[int]:
    """Where the model's own generation settings, or else its config, stop."""
    for name, its_revision in lineage(source, revision):
        with suppress(OSError):
            ends = GenerationConfig.from_pretrained(name, revision=its_revision).eos_token_id
            break
    else:
        config = AutoConfig.from_pretrained(name, revision=its_revision, trust_remote_code=trust_remote_code)
        ends = config.get_text_config().eos_token_id
    return ends if isinstance(ends, list) else [ends]


def _load_tokenizer(source: str, revision: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The model's, or if it is an adapter that has none, that of what it stands on."""
    for name, its_revision in lineage(source, revision):
        quietly = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
        if cached_file(name, "tokenizer_config.json", revision=its_revision, **quietly):
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
    """The chat template in a jinja file, or that of another model if `tokenizer` has the tokens that it needs."""
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
    missing = set(control_tokens(source).findall(template)) - tokenizer.get_vocab().keys()
    if missing:  # they would have to be added, and learned
        raise UserError(f"the chat template of {path} needs {min(missing)}, which the tokenizer lacks; use another")
    return template
