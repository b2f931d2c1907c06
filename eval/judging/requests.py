"""What a judge is asked: two replies to one prompt, in both orders."""

import hashlib
import itertools
import json
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, TemplateError, meta

from eval.config import JudgeConfig
from eval.judging.client import usd
from rlhf_trl.errors import UserError

Place = tuple[int, int]  # prompt and reply
Replies = dict[str, dict[Place, dict]]  # rows by policy and place
Meeting = tuple[Place, str, str]  # where the replies of which two policies are compared
TEMPLATE = Path(__file__).with_name("judge.txt")


class Request(NamedTuple):
    """One comparison in one order ("ab": `a` is shown first), the hash that its verdict is kept under, and whether its
    replies are equal."""

    key: str
    a: str
    b: str
    prompt: int
    reply: int
    order: str
    text: str
    equal: bool = False


def read_template(path: str | None) -> str:
    """The jinja2 source that makes a request's text from `dialogue`, `first` and `second`.

    Raises:
        UserError: it cannot be read, or does not use exactly these three.
    """
    file = Path(path or TEMPLATE)
    try:
        source = file.read_text(encoding="utf-8")
        variables = meta.find_undeclared_variables(Environment().parse(source))
    except (OSError, ValueError, TemplateError) as error:
        raise UserError(f"the judge_template {file} cannot be used: {error}") from error
    if variables != {"dialogue", "first", "second"}:
        raise UserError(f"the judge_template {file} must use the variables dialogue, first and second, and no others")
    return source


def make_requests(meetings: list[Meeting], samples: Replies, template: str, judge: JudgeConfig) -> list[Request]:
    """Both orders of every meeting."""
    render = Environment().from_string(template).render
    settings = [judge.base_url, judge.judge_model, judge.judge_temperature, judge.judge_max_tokens]
    requests = []
    for (place, a, b), order in itertools.product(meetings, ("ab", "ba")):
        first, second = (samples[name][place] for name in ((a, b) if order == "ab" else (b, a)))
        text = render(dialogue=first["dialogue"], first=first["completion"], second=second["completion"])
        key = hashlib.sha256(json.dumps([*settings, text]).encode()).hexdigest()
        equal = first["completion"].strip() == second["completion"].strip()
        requests.append(Request(key, a, b, *place, order, text, equal))
    return requests


def estimate(judge: JudgeConfig, missing: Collection[Request], requests: int) -> str:
    """What a run would take, as one line."""
    output = judge.judge_max_tokens or 512
    tokens = {"input": sum(len(request.text) for request in missing) // 4, "output": output * len(missing)}
    cost = "" if judge.usd_per_million_input is None else f", at most ${usd(judge, tokens):.2f}"
    return (
        f"judge: {len(missing)} of {requests} requests are outstanding: about {tokens['input']} tokens in (of 4 "
        f"characters) and at most {tokens['output']} out ({output} a request){cost}; nothing was asked or written"
    )
