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
from pathlib import Path

from eval.config import OPENAI_URL, JudgeConfig
from eval.judging.client import JudgeClient, parameters, read_key
from eval.judging.requests import Meeting, Replies, Tally, estimate, make_requests, publish, read_template, tally
from eval.judging.transcript import Transcript, ask_all, tie_equal_replies
from rlhf_trl.errors import UserError
from rlhf_trl.files import read_jsonl, write_json
from rlhf_trl.provenance import MANIFEST, Task

TARGETS = {"samples": "make samples", "scores": "make score"}


def main(task: Task, judge: JudgeConfig) -> None:
    source = Path(judge.output_dir) / judge.reads[0]
    template = read_template(judge.judge_template)
    pairs = choose_pairs(list(judge.folders), judge.judge_pairs)
    key = read_key()
    if judge.judge_checkpoints:
        reference, *others = judge.folders
        names = [path.stem.rpartition("-") for path in sorted((source / "checkpoints").glob("*.jsonl"))]
        pairs += [(f"checkpoints/{n}-{step}", reference) for n, _, step in names if n in others and step != "final"]
    if judge.judge_greedy:
        pairs += [(f"greedy/{a}", f"greedy/{b}") for a, b in pairs if "/" not in a]
    replies = read_replies(source, pairs, judge)
    places = sorted({place for rows in replies.values() for place in rows})  # so that a budget cuts all pairs alike
    meetings = [
        (place, a, b)
        for place, (a, b) in itertools.product(places, pairs)
        if place in replies[a] and place in replies[b]
    ]
    manifest = {
        "judge": judge.judge,
        "pairs": [f"{a}:{b}" for a, b in pairs],
        "prompts": 1 + max(prompt for (prompt, _), *_ in meetings),
        "replies": 1 + max(reply for (_, reply), *_ in meetings),
    }
    if judge.judge == "gold":
        found = judge_by_rule(meetings, replies)
        if judge.dry_run:
            print(estimate(judge, [], found.verdicts))
        else:
            publish(task, found.verdicts, Tally(), found, manifest | {"model": "the true rule"})
        return

    transcript = Transcript(task.folder / "transcript.jsonl")
    records = transcript.records
    requests = make_requests(meetings, replies, template, judge)
    missing = {request.key: request for request in requests if not records[request.key].get("verdict")}
    to_ask = [request for request in missing.values() if not request.equal]
    if judge.dry_run:
        print(estimate(judge, to_ask, len(requests)))
        return
    can_ask = key or judge.base_url != OPENAI_URL or not to_ask
    nothing = judge.judge == "openai" and not can_ask and all(request.key in missing for request in requests)
    if judge.judge == "none" or nothing:
        reason = "no OPENAI_API_KEY and no base_url" if nothing else "set to none"
        (task.folder / "verdicts.jsonl").unlink(missing_ok=True)  # of other replies; the transcript stays
        sha256 = None if nothing else "none"  # without a hash it is gone on with, whatever is asked for then
        write_json(task.folder / MANIFEST, task.manifest(sha256, judge="none", reason=reason))
        print(f"judge: {reason}, so no judge ran and there are no verdicts (the transcript, if any, is kept)")
        return

    before = tally(requests, records)
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
    publish(task, len(requests), before, tally(requests, records), manifest)


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


def read_replies(folder: Path, pairs: list[tuple[str, str]], judge: JudgeConfig) -> Replies:
    """The first `judge_replies` rows to each of the first `judge_prompts` prompts, by prompt and reply, of each policy
    in `pairs`, or as many as there are: checkpoints may answer fewer prompts. `folder` is that of samples or scores.

    Raises:
        UserError: a file is missing, or they are not of the same prompts.
    """
    found = {}
    for name in dict.fromkeys(itertools.chain(*pairs)):
        path = folder / f"{name}.jsonl"
        if not path.exists():
            raise UserError(f"{path} is missing; run '{TARGETS[folder.name]}' first")
        found[name], prompt = {}, -1
        for row in read_jsonl(path):
            prompt += row["reply"] == 0
            if prompt < judge.judge_prompts and row["reply"] < judge.judge_replies:
                found[name][prompt, row["reply"]] = row
    dialogues = {prompt: row["dialogue"] for rows in found.values() for (prompt, _), row in rows.items()}
    if any(row["dialogue"] != dialogues[prompt] for rows in found.values() for (prompt, _), row in rows.items()):
        raise UserError(f"the files in {folder} are not of the same prompts; run '{TARGETS[folder.name]}' again")
    return found


def judge_by_rule(meetings: list[Meeting], replies: Replies) -> Tally:
    """What the true rule says of each meeting: the reply with the higher gold reward wins, in either order.

    Raises:
        UserError: the replies were scored without a rule.
    """
    found = Tally()
    for place, a, b in meetings:
        first, second = (replies[name][place]["gold"] for name in (a, b))
        if first is None:
            raise UserError("judge gold needs a gold_rule, which this profile has not; choose openai or none")
        winner = "tie" if first == second else "a" if first > second else "b"
        found.add(a, b, place, winner, winner)
    found.verdicts = 2 * len(found.rows)
    return found
