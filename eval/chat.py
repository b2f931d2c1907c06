"""Talk to a policy on the terminal.

    make chat POLICY=ppo
    python -m eval chat --policy runs/demo/ppo --temperature 0

The policy reads what it would read in training and evaluation, and samples as there. An empty line or Ctrl-D ends the
chat; Ctrl-C during a reply stops it and takes the turn back.
"""

import sys
from collections.abc import Iterator
from contextlib import suppress

from transformers import TextStreamer

from eval.config import ChatConfig
from eval.samples import sample
from rlhf_trl.frame_loading import load_frame
from rlhf_trl.frames import REPLY, SPECIAL, TURN, RowError
from rlhf_trl.hub import check_source, check_weights
from rlhf_trl.models import device, load_policy, positions

with suppress(ImportError):  # where it is there, `input` lets a line be edited and called back
    import readline  # noqa: F401


def main(config: ChatConfig) -> None:
    check_source(config.policy, "POLICY")
    check_weights(config.policy)
    frame = load_frame(config.policy, trust_remote_code=config.trust_remote_code)
    model = load_policy(config.policy, frame.tokenizer, config.dtype, config.trust_remote_code).to(device())
    dialogue = ""  # in HH's format
    for seed, line in enumerate(_lines(), config.seed):
        asked = f"{dialogue}\n\nHuman: {line}{REPLY}"
        streamer = TextStreamer(frame.tokenizer, skip_prompt=True, skip_special_tokens=True)
        try:
            if frame.control.search(line):
                raise RowError(SPECIAL)
            ids = frame.prompt_ids(frame.prompt(asked))
            room = positions(model.config) - len(ids)
            if room < 1:
                raise RowError(f"{len(ids)} tokens leave no room for a reply in the context of {len(ids) + room}")
            (reply,) = sample(model, frame, [ids], min(config.max_new_tokens, room), seed, config.temperature, streamer)
        except RowError as reason:
            print(f"{reason}; the chat begins anew", file=sys.stderr)
            dialogue = ""
        except KeyboardInterrupt:
            print()
        else:
            if not frame.finished(reply):
                print(f"[cut off after {len(reply)} tokens]", file=sys.stderr)
            said = frame.text(reply)
            dialogue = asked + said
            if TURN.search(said):
                print("the reply holds another turn; the chat begins anew", file=sys.stderr)
                dialogue = ""


def _lines() -> Iterator[str]:
    sys.stdin.reconfigure(errors="replace")
    with suppress(EOFError, KeyboardInterrupt):
        while line := input("> " if sys.stdin.isatty() else "").strip():
            yield line
