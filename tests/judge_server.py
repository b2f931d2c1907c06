"""An OpenAI-compatible server on loopback that judges well, badly or not at all, and remembers what it was asked."""

import json
import random
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """What goes back; `length` is the Content-Length claimed, by default the true one."""

    status: int
    body: dict | bytes
    headers: dict[str, str] = {}  # noqa: RUF012
    length: int | None = None


class Call(NamedTuple):
    """What came: the JSON body, its prompt, the Authorization header, and how often this prompt came before."""

    body: dict[str, Any]
    text: str
    authorization: str
    earlier: int


Behaviour = Callable[[Call], Reply]


class JudgeServer(ThreadingHTTPServer):
    """Answers as `behaviour`, which may be changed at any time, says; `calls` are those received so far."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviour, self.calls, self.lock = behaviour, [], threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> "JudgeServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_) -> None:
        """Clients that are killed or lose patience are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        with self.server.lock:
            earlier = sum(call.text == text for call in self.server.calls)
            call = Call(body, text, self.headers["Authorization"], earlier)
            self.server.calls.append(call)
        reply = self.server.behaviour(call)
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in ({"Content-Type": "application/json"} | reply.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(reply.length or len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = reply.length is not None

    def log_message(self, *_) -> None:
        pass


def answer(content: Any, finish_reason: str = "stop", refusal: str | None = None) -> Reply:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    served = {"id": "1", "object": "chat.completion", "created": 1, "model": "served-1"}
    return Reply(200, served | {"choices": [choice], "usage": usage})


def verdict(name: str) -> Reply:
    return answer(json.dumps({"reason": "so it is", "verdict": name}))


def error(status: int, message: str = "no", param: str | None = None, code: str | None = None, **headers: str) -> Reply:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"error": {"message": message, "param": param, "type": "t", "code": code}}, names)


def replies(text: str) -> tuple[str, str]:
    """The two replies that a prompt made with the default template shows."""
    return re.search(r"<first>\n(.*)\n</first>\n\n<second>\n(.*)\n</second>", text, re.DOTALL).groups()


def fair(call: Call) -> Reply:
    first, second = ("good" in reply for reply in replies(call.text))
    return verdict("tie" if first == second else "first" if first else "second")


def always_first(call: Call) -> Reply:
    return verdict("first")


def at_random(call: Call) -> Reply:
    return verdict(random.Random(call.text).choice(("first", "second", "tie")))


def phrased(form: Callable[[str], Any], behaviour: Behaviour = fair) -> Behaviour:
    """Puts what `behaviour` says as `form` makes it."""
    return lambda call: answer(form(behaviour(call).body["choices"][0]["message"]["content"]))


def slowly(seconds: float, behaviour: Behaviour = fair) -> Behaviour:
    def behave(call: Call) -> Reply:
        time.sleep(seconds)
        return behaviour(call)

    return behave


def refusing(*parameters: str, structured: bool = True) -> Behaviour:
    """Answers 400 to a request that has one of `parameters`, named in `param` or only in the message."""

    def behave(call: Call) -> Reply:
        for name in parameters:
            if name in call.body:
                return error(400, f"Unsupported parameter: {name}", param=name if structured else None)
        return fair(call)

    return behave
