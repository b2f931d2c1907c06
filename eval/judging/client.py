"""The judge's server: requests by the openai SDK, within a budget, and what may count as a verdict."""

import asyncio
import json
import math
import os
import re
import sys
from collections import Counter
from typing import Any, Literal

import openai
from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from eval.config import JudgeConfig
from rlhf_trl.errors import UserError

JSON = json.JSONDecoder(strict=False)  # a reason may run over several lines
RECORD = dict.fromkeys(("request", "answer", "model", "usage", "verdict", "failure", "detail"))
# Below 500 these concern one request; any other (a wrong key, an unknown model, a redirect) would meet them all
CONCERNS_ONE_REQUEST = (400, 408, 409, 413, 422, 429)
FEWEST_UNREACHABLE = 8  # requests in a row before a server is given up


def read_key() -> str:
    """The key of the judge's server, "" if there is none.

    Raises:
        UserError: it cannot be sent as a header; the HTTP client's error would show it.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError("OPENAI_API_KEY holds a character that no key has; set it again")
    return key


class Verdict(BaseModel):
    """Which of two replies is better, and why."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    reason: str
    verdict: Literal["first", "second", "tie"]


class BudgetSpent(openai.OpenAIError):
    """No further request may leave. One of the SDK's own errors, because those it does not retry."""


def quota_is_exhausted(response: Any) -> bool:
    """Whether an account has nothing left. A rate limit has the same status, but passes by itself."""
    return response.status_code == 429 and '"insufficient_quota"' in response.text


class CountingClient(openai.DefaultAsyncHttpxClient):
    """Counts the requests that leave, the SDK's retries among them, and lets no more than `limit` leave."""

    def __init__(self, limit: int | None) -> None:
        super().__init__(follow_redirects=False)  # they would leave uncounted
        self.limit = math.inf if limit is None else limit
        self.sent = self.flying = 0
        self.spent = asyncio.Event()  # set when the last one allowed is back

    async def send(self, *args: Any, **options: Any) -> Any:
        if self.sent >= self.limit:
            raise BudgetSpent
        self.sent += 1
        self.flying += 1
        try:
            response = await super().send(*args, **options)
            if quota_is_exhausted(response):
                response.headers["x-should-retry"] = "false"  # which the SDK obeys
            return response
        finally:
            self.flying -= 1
            if self.sent >= self.limit and not self.flying:
                self.spent.set()


class JudgeClient:
    """Asks an OpenAI-compatible server; keeps what it was found to refuse, and what this run has used of it."""

    def __init__(self, judge: JudgeConfig, key: str) -> None:
        self.judge, self.key = judge, key
        self.parameters = parameters(judge)
        self.tokens = Counter(input=0, output=0)
        self.unmetered = False
        self.unreachable = 0  # requests in a row
        self.http = CountingClient(judge.budget_requests)
        self.sdk = openai.AsyncOpenAI(
            api_key=key or "none",
            base_url=judge.base_url,
            timeout=judge.timeout,
            max_retries=judge.retries,
            http_client=self.http,
        )

    async def ask(self, text: str) -> dict:
        """Ask for one verdict; returns what a line of the transcript tells of it.

        Raises:
            UserError: the server would turn down any other request, too.
            BudgetSpent: no request is left for it.
        """
        message = {"role": "user", "content": text}
        while True:
            request = {"model": self.judge.judge_model, "messages": [message], **self.parameters}
            try:
                outcome = read_answer(await self.sdk.chat.completions.create(**request))
            except BudgetSpent:
                raise
            except openai.APIStatusError as error:
                if self._leave_out(error, request):
                    continue
                status, said = error.status_code, str(error.body or error)
                if remedy := remedy_for_all(error):
                    # "from None", as a traceback would show what the server said, which may be the key
                    raise UserError(
                        f"the judge's server turns everything down ({self._redact(error.message)[:200]}); {remedy}"
                    ) from None
                outcome = {"failure": "rate limit" if status == 429 else f"http {status}", "detail": said}
            except openai.APIConnectionError as error:
                timeout = isinstance(error, openai.APITimeoutError)
                outcome = {"failure": "timeout" if timeout else "connection", "detail": repr(error.__cause__)}
            except (openai.OpenAIError, ValueError) as error:  # ValueError: the body is no JSON
                outcome = {"failure": "bad response", "detail": str(error)}
            record = RECORD | {"request": request} | outcome
            self.unreachable = self.unreachable + 1 if record["failure"] == "connection" else 0
            if self.unreachable > max(self.judge.concurrency, FEWEST_UNREACHABLE):
                raise UserError(
                    f"the judge's server {self.judge.base_url} cannot be reached ({record['detail'][:200]}); start it, "
                    "or check base_url and OPENAI_BASE_URL, and run again: verdicts are kept"
                )
            self.tokens.update(record["usage"])
            self.unmetered |= bool(record["verdict"] and not record["usage"])
            redacted = {name: self._redact(record[name]) for name in ("answer", "model", "detail")}
            return record | redacted

    def over_budget(self) -> bool:
        """Whether the tokens or the money are spent.

        Raises:
            UserError: the server does not tell.
        """
        used = ((self.judge.budget_tokens, self.tokens.total()), (self.judge.budget_usd, usd(self.judge, self.tokens)))
        limited = [(limit, amount) for limit, amount in used if limit is not None]
        if limited and self.unmetered:
            raise UserError("the judge's server reports no usage, so only budget_requests can limit it")
        return any(amount >= limit for limit, amount in limited)

    def _leave_out(self, error: openai.APIStatusError, request: dict) -> bool:
        """Whether the server refuses an optional parameter of `request`; no later request will have it."""
        named = str(error.param or error.body)
        name = next((name for name in parameters(self.judge) if name in request and name in named), None)
        if error.status_code not in (400, 422) or name is None:
            return False
        if self.parameters.pop(name, None) is not None:
            tqdm.write(f"judge: the server refuses {name}, so it is left out", file=sys.stderr)
        return True

    def _redact(self, said: Any) -> Any:
        return said.replace(self.key, "[OPENAI_API_KEY]") if self.key and isinstance(said, str) else said


def remedy_for_all(error: openai.APIStatusError) -> str | None:
    """What to do about an error that any other request would meet, too; None if it concerns one request."""
    if error.status_code == 402 or quota_is_exhausted(error.response):
        return "the quota is exhausted: add credit or set another OPENAI_API_KEY, then run again; verdicts are kept"
    concerns_one = error.status_code >= 500 or error.status_code in CONCERNS_ONE_REQUEST
    if concerns_one and error.param != "model" and error.code != "model_not_found":
        return None
    return "check OPENAI_API_KEY, judge_model and base_url"


def parameters(judge: JudgeConfig) -> dict[str, Any]:
    """What a request holds besides model and messages; a server may refuse each of it."""
    optional = {"temperature": judge.judge_temperature, "max_completion_tokens": judge.judge_max_tokens}
    schema = {"name": "verdict", "strict": True, "schema": Verdict.model_json_schema()}
    return {
        "response_format": {"type": "json_schema", "json_schema": schema},
        **{name: value for name, value in optional.items() if value is not None},
    }


def read_answer(completion: Any) -> dict:
    """Answer, model, usage, and either the verdict or the kind of failure. Servers send what they like."""
    try:
        choice = completion.choices[0]
        answer, refusal = choice.message.content, choice.message.refusal
        if isinstance(answer, list):  # of parts; those that are no text hold what the model thought
            answer = "".join(part["text"] for part in answer if part["type"] == "text")
        usage = completion.usage
        tokens = usage and {"input": int(usage.prompt_tokens), "output": int(usage.completion_tokens)}
    except (AttributeError, LookupError, TypeError, ValueError):
        return {"failure": "bad response", "detail": str(completion)}
    answer = str(answer or "")
    outcome = {"answer": answer, "model": completion.model, "usage": tokens}
    if refusal or choice.finish_reason == "content_filter":
        return outcome | {"failure": "refusal", "detail": refusal}
    if choice.finish_reason == "length":
        return outcome | {"failure": "cut off"}
    verdict = parse_verdict(answer)
    return outcome | {"verdict": verdict, "failure": None if verdict else "unparsable"}


def parse_verdict(answer: str) -> str | None:
    """The verdict of the last JSON object that fits `Verdict`, whatever its reason is and keys are added; None without
    such an object. What is thought before the answer, up to `</think>`, counts nowhere."""
    verdict, thinking, end, failed = None, False, 0, 0
    for mark in re.finditer(r'<think>|</think>|\{\s*"', answer):
        if mark.start() < end:  # within an object
            continue
        if mark[0].startswith("<"):
            verdict, thinking, failed = None, mark[0] == "<think>", 0
            continue
        if mark.start() < failed:  # within what is no object; so every character is read about once
            continue
        try:
            found, end = JSON.raw_decode(answer, mark.start())
            verdict = Verdict(reason="", verdict=str(found["verdict"]).strip().lower()).verdict
        except json.JSONDecodeError as error:
            failed = error.pos
        except (KeyError, ValueError):  # another object, or a number too long to read
            continue
        except RecursionError:
            return None
    return None if thinking else verdict


def usd(judge: JudgeConfig, tokens: dict[str, int]) -> float:
    """What so many tokens cost, in USD; 0 without prices."""
    prices = {"input": judge.usd_per_million_input, "output": judge.usd_per_million_output}
    return sum(tokens[side] * (price or 0) for side, price in prices.items()) / 1e6
