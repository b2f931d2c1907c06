"""Talk to a policy on the terminal.

    make chat POLICY=ppo
    python -m eval chat --policy runs/demo/ppo --greedy true

The policy reads what it would read in training and evaluation, and samples as there. An empty line or Ctrl-D ends the
chat; Ctrl-C during a reply stops it and takes the turn back.
"""

import itertools
import sys
from contextlib import suppress

from transformers import TextStreamer

from eval.config import ChatConfig
from eval.samples import sample
from rlhf_trl.frames import REPLY, SPECIAL, Frame, RowError, load_frame
from rlhf_trl.hub import check_source, check_weights
from rlhf_trl.models import device, load_policy, positions

with suppress(ImportError):  # where there is one, it lets a line be edited and called back
    import readline  # noqa: F401


def main(config: ChatConfig) -> None:
    check_source(config.policy, "POLICY")
    check_weights(config.policy)
    frame = load_frame(config.policy, trust_remote_code=config.trust_remote_code)
    model = load_policy(config.policy, frame.tokenizer, config.dtype, config.trust_remote_code).to(device())
    sys.stdin.reconfigure(errors="replace")
    temperature = 0.0 if config.greedy else config.temperature
    dialogue = ""
    for seed in itertools.count(config.seed):
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            line = ""
        if not line:
            return
        try:
            asked, ids = ask(dialogue, line, frame, positions(model.config))
        except RowError as reason:
            print(f"{reason}; the chat begins anew", file=sys.stderr)
            dialogue = ""
            continue
        room = min(config.max_new_tokens, positions(model.config) - len(ids))
        streamer = TextStreamer(frame.tokenizer, skip_prompt=True, skip_special_tokens=True)
        try:
            (reply,) = sample(model, frame, [ids], room, seed, temperature, streamer)
        except KeyboardInterrupt:
            print()
            continue
        if not frame.finished(reply):
            print(f"[cut off after {len(reply)} tokens]", file=sys.stderr)
        dialogue = asked + frame.text(reply)


def ask(dialogue: str, line: str, frame: Frame, context: float) -> tuple[str, list[int]]:
    """The dialogue (HH's text) with the next question, and the ids that the policy reads of it.

    Raises:
        RowError: the question or the dialogue cannot be put into the frame, or leaves no room for a reply.
    """
    if frame.control.search(line):
        raise RowError(SPECIAL)
    asked = f"{dialogue}\n\nHuman: {line}{REPLY}"
    ids = frame.prompt_ids(frame.prompt(asked))
    if len(ids) >= context:
        raise RowError(f"{len(ids)} tokens are too many for the context of {context}")
    return asked, ids
