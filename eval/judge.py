"""Compare the policies' replies pair by pair, in both orders: by a model behind an API, or by the true rule.

    make judge PROFILE=gpt2
    python -m eval judge --config configs/gpt2.yaml --dry_run

Writes to OUTPUT_DIR/judge: `transcript.jsonl`, every request and what came of it, so that none is paid for
twice; `verdicts.jsonl`, a line for each pair, prompt and reply judged in both orders; `manifest.json`. A request
that failed has no verdict, counts nowhere and is asked again by the next run. Equal replies are a tie that nobody is
asked for. The key is read from OPENAI_API_KEY.
"""

import asyncio
import hashlib
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from jinja2 import Environment, TemplateError, meta
from tqdm import tqdm

from eval.config import OPENAI_URL, JudgeConfig
from eval.judging.client import RECORD, BudgetSpent, JudgeClient, parameters, usd
from eval.judging.tally import Request, publish, tally
from rlhf_trl.errors import UserError
from rlhf_trl.files import read_jsonl, write_json
from rlhf_trl.provenance import MANIFEST, Task


def main(task: Task, judge: JudgeConfig) -> None:
    folder = task.folder
    template = read_template(judge.judge_template)
    pairs = choose_pairs(list(judge.folders), judge.judge_pairs)
    transcript = Transcript(folder / "transcript.jsonl")
    key = read_key()
    samples_folder = Path(judge.output_dir) / judge.reads[0]
    if judge.judge_checkpoints:
        reference, *others = judge.folders
        names = [path.stem.rpartition("-") for path in sorted((samples_folder / "checkpoints").glob("*.jsonl"))]
        pairs += [(f"checkpoints/{n}-{step}", reference) for n, _, step in names if n in others and step != "final"]
    if judge.judge_greedy:
        pairs += [(f"greedy/{a}", f"greedy/{b}") for a, b in pairs if "/" not in a]
    samples = read_samples(samples_folder, pairs, judge.judge_prompts, judge.judge_replies)
    requests = make_requests(samples, pairs, template, judge)
    records = gold_records(samples, requests) if judge.judge == "gold" else transcript.records
    missing = {request.key: request for request in requests if not records[request.key].get("verdict")}
    to_ask = [request for request in missing.values() if not request.equal]
    if judge.dry_run:
        print(estimate(judge, to_ask, len(requests)))
        return
    can_ask = key or judge.base_url != OPENAI_URL or not to_ask
    nothing = judge.judge == "openai" and not can_ask and all(request.key in missing for request in requests)
    if judge.judge == "none" or nothing:
        reason = "no OPENAI_API_KEY and no base_url" if nothing else "set to none"
        (folder / "verdicts.jsonl").unlink(missing_ok=True)  # of other replies; the transcript stays
        nobody = {"judge": "none", "reason": reason, "unfinished": judge.judge != "none"}
        write_json(folder / MANIFEST, task.manifest("none", **nobody))
        print(f"judge: {reason}, so no judge ran and there are no verdicts (the transcript, if any, is kept)")
        return

    manifest = {
        "judge": judge.judge,
        "pairs": [f"{a}:{b}" for a, b in pairs],
        "prompts": 1 + max(request.prompt for request in requests),
        "replies": 1 + max(request.reply for request in requests),
    }
    before = tally([] if judge.judge == "gold" else requests, transcript.records)  # the rule costs nothing: all at once
    if judge.judge == "gold":
        manifest["model"] = "the true rule"
    else:
        cached = sum(request.key not in missing and not request.equal for request in requests)
        client = JudgeClient(judge, key)
        if can_ask:
            asyncio.run(ask_all(client, to_ask, transcript))
        tie_equal_replies(requests, transcript)
        used = [records[request.key] for request in requests if not request.equal]
        used = [record for record in used if record.get("verdict")]
        manifest |= {
            "base_url": judge.base_url,
            "model": judge.judge_model,
            "models_served": sorted({str(record["model"]) for record in used}),
            "template_sha256": hashlib.sha256(template.encode()).hexdigest(),
            "parameters": parameters(judge),
            "refused": [name for name in parameters(judge) if any(name not in record["request"] for record in used)],
            "requests": {"sent": client.http.sent, "cached": cached},
            "equal_replies": sum(request.equal and request.order == "ab" for request in requests),
            "tokens": dict(client.tokens),
        }
    publish(task, requests, before, tally(requests, records), manifest)


def read_template(path: str | None) -> str:
    """The jinja2 source that makes a request's text from `dialogue`, `first` and `second`.

    Raises:
        UserError: it cannot be read, or does not use exactly these three.
    """
    file = Path(path or Path(__file__).parent / "judging" / "judge.txt")
    try:
        source = file.read_text(encoding="utf-8")
        variables = meta.find_undeclared_variables(Environment().parse(source))
    except (OSError, ValueError, TemplateError) as error:
        raise UserError(f"the judge_template {file} cannot be used: {error}") from error
    if variables != {"dialogue", "first", "second"}:
        raise UserError(f"the judge_template {file} must use the variables dialogue, first and second, and no others")
    return source


def choose_pairs(names: list[str], named: list[str] | None) -> list[tuple[str, str]]:
    """The pairs (a, b) to judge: those named as "a:b", else each policy against every earlier one.

    Raises:
        UserError: a pair names an unknown policy, or there is no pair.
    """
    pairs = [(b, a) for a, b in itertools.combinations(names, 2)]
    if named is not None:
        pairs = [(a, b) for a, _, b in (pair.partition(":") for pair in dict.fromkeys(named))]
    for a, b in pairs:
        if not {a, b} <= set(names):
            raise UserError(f"judge_pairs: {a}:{b} names no two policies; write A:B, of {', '.join(names)}")
    if not pairs:
        raise UserError("there is no pair of policies to judge; name two in policies")
    return pairs


def read_key() -> str:
    """The key of the judge's server, "" if there is none.

    Raises:
        UserError: it cannot be sent as a header; the HTTP client's error would show it.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError("OPENAI_API_KEY holds a character that no key has; set it again")
    return key


def read_samples(
    folder: Path, pairs: list[tuple[str, str]], prompts: int, replies: int
) -> dict[str, dict[tuple[int, int], dict]]:
    """The first `replies` rows to each of the first `prompts` prompts, by prompt and reply, of each policy in `pairs`,
    or as many as there are: checkpoints may answer fewer prompts.

    Raises:
        UserError: a file is missing, or they are not of the same prompts.
    """
    samples = {}
    for name in dict.fromkeys(itertools.chain(*pairs)):
        path = folder / f"{name}.jsonl"
        if not path.exists():
            raise UserError(f"{path} is missing; run 'make samples' first")
        samples[name], prompt = {}, -1
        for row in read_jsonl(path):
            prompt += row["reply"] == 0
            if prompt < prompts and row["reply"] < replies:
                samples[name][prompt, row["reply"]] = row
    dialogues = {prompt: row["dialogue"] for rows in samples.values() for (prompt, _), row in rows.items()}
    if any(row["dialogue"] != dialogues[prompt] for rows in samples.values() for (prompt, _), row in rows.items()):
        raise UserError(f"the files in {folder} are not of the same prompts; run 'make samples' again")
    return samples


def make_requests(
    samples: dict[str, dict[tuple[int, int], dict]], pairs: list[tuple[str, str]], template: str, judge: JudgeConfig
) -> list[Request]:
    """Both orders of every pair on every prompt; prompt by prompt, so that a budget cuts all pairs alike."""
    render = Environment().from_string(template).render
    settings = [judge.base_url, judge.judge_model, judge.judge_temperature, judge.judge_max_tokens]
    requests = []
    every = sorted({place for rows in samples.values() for place in rows})
    for place, (a, b), order in itertools.product(every, pairs, ("ab", "ba")):
        if not (place in samples[a] and place in samples[b]):
            continue
        first, second = (samples[name][place] for name in ((a, b) if order == "ab" else (b, a)))
        text = render(dialogue=first["dialogue"], first=first["completion"], second=second["completion"])
        key = hashlib.sha256(json.dumps([*settings, text]).encode()).hexdigest()
        equal = first["completion"].strip() == second["completion"].strip()
        requests.append(Request(key, a, b, *place, order, text, equal))
    return requests


def gold_records(samples: dict[str, dict[tuple[int, int], dict]], requests: list[Request]) -> dict[str, dict]:
    """What the true rule says to each request: the reply with the higher `gold` wins.

    Raises:
        UserError: the replies were scored without a rule.
    """
    records = {}
    for request in requests:
        a, b = (samples[name][request.prompt, request.reply]["gold"] for name in (request.a, request.b))
        if a is None:
            raise UserError("judge gold needs a gold_rule, which this profile has not; choose openai or none")
        better = "first" if (a > b) == (request.order == "ab") else "second"
        records[request.key] = {"verdict": "tie" if a == b else better}
    return records


def estimate(judge: JudgeConfig, missing: Collection[Request], requests: int) -> str:
    """What a run would take, as one line."""
    output = judge.judge_max_tokens or 512
    tokens = {"input": sum(len(request.text) for request in missing) // 4, "output": output * len(missing)}
    cost = "" if judge.usd_per_million_input is None else f", at most ${usd(judge, tokens):.2f}"
    return (
        f"judge: {len(missing)} of {requests} requests are outstanding: about {tokens['input']} tokens in (of 4 "
        f"characters) and at most {tokens['output']} out ({output} a request){cost}; nothing was asked or written"
    )


class Transcript:
    """`transcript.jsonl`: a line for each request that was answered or failed for good.

    `records` holds what counts, by key: the verdict if there is one, else the last failure, else {}.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, dict] = defaultdict(dict)
        content = path.read_bytes() if path.exists() else b""
        self.end = content.rfind(b"\n") + 1  # a killed run may have left half a line after it
        for line in content[: self.end].splitlines():
            record = json.loads(line)
            if not self.records[record["key"]].get("verdict"):
                self.records[record["key"]] = record

    def append(self, request: Request, outcome: dict) -> None:
        names = ("key", "a", "b", "prompt", "reply", "order")
        record = {name: getattr(request, name) for name in names} | outcome
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.seek(self.end)
            file.truncate()
            file.write(json.dumps(record).encode() + b"\n")
            self.end = file.tell()
        self.records[record["key"]] = record


async def ask_all(client: JudgeClient, requests: Collection[Request], transcript: Transcript) -> None:
    """Ask until every request is in the transcript or the budget is spent."""
    queue = iter(requests)
    progress = tqdm(total=len(requests), desc="judge")

    async def work() -> None:
        for request in queue:
            if client.over_budget():
                return
            try:
                outcome = await client.ask(request.text)
            except BudgetSpent:
                return
            transcript.append(request, outcome)
            progress.update()

    async def crew() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(client.judge.concurrency):
                group.create_task(work())

    async with client.sdk:
        working = asyncio.create_task(crew())
        spent = asyncio.create_task(client.http.spent.wait())
        await asyncio.wait((working, spent), return_when=asyncio.FIRST_COMPLETED)
        working.cancel()  # who is left only sleeps before a retry that the budget has no room for
        (outcome,) = await asyncio.gather(working, return_exceptions=True)
    progress.close()
    if isinstance(outcome, ExceptionGroup):
        raise outcome.exceptions[0] from None


def tie_equal_replies(requests: list[Request], transcript: Transcript) -> None:
    """Take down a tie wherever the replies are equal, up to the first request of a pair that was not made: of what a
    budget cuts off, the ties alone would count."""
    unfinished = set()
    for request in requests:
        pair, record = (request.a, request.b), transcript.records[request.key]
        if not request.equal and not record:
            unfinished.add(pair)
        elif request.equal and not record.get("verdict") and pair not in unfinished:
            transcript.append(request, RECORD | {"verdict": "tie", "detail": "equal replies"})
