"""What a judge is asked, two replies to one prompt in both orders, and what its answers came to."""

import hashlib
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, TemplateError, meta

from eval.config import JudgeConfig
from eval.judging.client import usd
from rlhf_trl.errors import UserError
from rlhf_trl.files import file_hash, write_json, write_jsonl
from rlhf_trl.provenance import MANIFEST, Task, read_manifest

Place = tuple[int, int]  # prompt and reply
Replies = dict[str, dict[Place, dict]]  # rows by policy and place
Meeting = tuple[Place, str, str]  # where the replies of which two policies are compared
TEMPLATE = Path(__file__).with_name("judge.txt")
POINTS = {"a": 1.0, "tie": 0.5, "b": 0.0}


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


@dataclass
class Tally:
    """What requests came to: `rows` of `verdicts.jsonl`, requests with a verdict, failures by pair and kind; and of
    each pair the places (prompt and reply) asked for, judged in both orders, and failed in one or both."""

    rows: list[dict] = field(default_factory=list)
    verdicts: int = 0
    failures: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    planned: dict[str, set[Place]] = field(default_factory=lambda: defaultdict(set))
    judged: dict[str, set[Place]] = field(default_factory=lambda: defaultdict(set))
    failed: dict[str, set[Place]] = field(default_factory=lambda: defaultdict(set))

    def add(self, a: str, b: str, place: Place, first: str, second: str) -> None:
        """Count a place whose winners in both orders are known."""
        score = (POINTS[first] + POINTS[second]) / 2
        row = {"a": a, "b": b, "prompt": place[0], "reply": place[1], "orders": [first, second], "score": score}
        self.rows.append(row)
        self.judged[f"{a}:{b}"].add(place)


def tally(requests: list[Request], records: dict[str, dict]) -> Tally:
    """Count what is known of each request."""
    found, orders = Tally(), defaultdict(dict)
    for request in requests:
        pair, place, record = f"{request.a}:{request.b}", (request.prompt, request.reply), records[request.key]
        found.planned[pair].add(place)
        if verdict := record.get("verdict"):
            found.verdicts += 1
            winner = "tie" if verdict == "tie" else request.order[verdict == "second"]
            orders[request.a, request.b, place][request.order] = winner
        elif record:
            found.failures[pair][record["failure"]] += 1
            found.failed[pair].add(place)
    for (a, b, place), won in orders.items():
        if len(won) == 2:
            found.add(a, b, place, won["ab"], won["ba"])
    return found


def publish(task: Task, requests: int, before: Tally, after: Tally, manifest: dict) -> None:
    """Write `verdicts.jsonl` and `manifest.json`, and print how many requests came to a verdict.

    `looks` in the manifest tells when more was asked although some verdicts of a pair had been published. Asking again
    what failed is not more: the prompts stay those that were fixed beforehand.
    """
    folder, published = task.folder, read_manifest(task.folder) or {}
    more = [p for p in after.planned if before.judged[p] and after.judged[p] - before.judged[p] - before.failed[p]]
    looks = published.get("looks", []) if any(before.judged.values()) else []
    if more and "looks" in published:
        seen, planned = (sum(len(of[pair]) for pair in more) for of in (before.judged, after.planned))
        looks = [*looks, {"seen": seen, "planned": planned}]
    failed = sum(after.failures.values(), Counter())
    pending = requests - after.verdicts - failed.total()
    (folder / MANIFEST).unlink(missing_ok=True)  # that of other verdicts
    write_jsonl(folder / "verdicts.jsonl", after.rows)
    manifest |= {
        "failures": after.failures,
        "failed": {pair: sorted(places) for pair, places in after.failed.items()},
        "pending": pending,
        "looks": looks,
        "unfinished": bool(pending or failed),
    }
    write_json(folder / MANIFEST, task.manifest(file_hash(folder / "verdicts.jsonl"), **manifest))

    kinds = ", ".join(f"{kind} {count}" for kind, count in failed.most_common())
    line = f"judge: {after.verdicts} of {requests} requests have a verdict"
    line += f", {failed.total()} failed ({kinds})" if failed else ""
    line += f", {pending} are left (run again to go on)" if pending else ""
    print(f"{line}; verdicts are in {folder / 'verdicts.jsonl'}")
