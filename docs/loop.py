"""Packed batches in a bare PyTorch loop: no Ray, no DeepSpeed, no model of ours. Begin with what `laid_out` does.

    interlace build corpora:text --data DIR
    python docs/loop.py runs/corpora/text-*                 as often as you like: it goes on where it was stopped
    torchrun --nproc-per-node 2 docs/loop.py runs/corpora/text-*

A model that guesses the next byte learns from the text of any built corpora, each with the same share of the bytes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from dataflow.index import BuiltCorpus
from dataflow.mixture import Group, Member, Mixture
from dataflow.packing import Packing, dealt
from dataflow.reader import Reader, Replaced, event_line, events_digest, fed, read_events
from dataflow.record import Record
from dataflow.schedule import Use
from dataflow.windows import Lengths, Windows

ROW, ROWS, STEPS = 2048, 16, 20  # bytes of a row, rows of a step over all ranks, steps
RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
EVENTS, STATE = Path("loop-events.jsonl"), Path("loop-state.pt")


def laid_out(use: Use, record: Record) -> bytes:
    """A record as this model trains on it; threads call it, ahead of the step. ValueError: another takes its place."""
    return b"\n".join(part.encode() for _, parts in record.turns for part in parts if isinstance(part, str)) + b"\0"


def measured(corpus: BuiltCorpus) -> Lengths:
    """How long each record will be. `interlace measure` does this with Ray for the models of this house."""
    tokens = [len(laid_out(Use(0, place, 0), corpus.record(place))) for place in range(len(corpus))]
    return Lengths(tokens=np.array(tokens, np.int32), drawn=np.zeros(len(corpus), np.int32))


def planned(corpora: list[BuiltCorpus]) -> Windows:
    """Which records share a row, and when."""
    groups = tuple(Group(name=corpus.name, share=1, members=(Member(corpus=None),)) for corpus in corpora)
    plan = Windows(
        mixture=Mixture(groups=groups, unit="tokens"),
        packing=Packing(too_long="drop"),
        names=tuple(corpus.name for corpus in corpora),
        digests=tuple(corpus.digest for corpus in corpora),
        rows=tuple(len(corpus) for corpus in corpora),
        batch=ROWS,
        length=ROW,
        positions=STEPS,
        lengths=tuple(map(measured, corpora)),
    )
    plan.check()
    return plan


def main() -> None:
    corpora = [BuiltCorpus(Path(folder)) for folder in sys.argv[1:]]
    plan, known = planned(corpora), read_events(EVENTS)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(256, 64), torch.nn.Linear(64, 256))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    start = 0
    if STATE.is_file():
        state = torch.load(STATE, weights_only=True)
        if state["schedule"] != plan.digest or state["events"] != events_digest(known, state["position"]):
            sys.exit(f"{STATE} was made in another order of records, or {EVENTS} is not what it was: remove both")
        start = state["position"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    def mine(position: int) -> list[int]:
        return dealt([plan.weight(pack) for pack in plan.packs(position)], RANKS)[RANK]

    reader = Reader(plan, corpora, decode=laid_out, known={event.place: event for event in known}, threads=2)
    for position, packs in fed(reader, range(start, STEPS), mine):
        loss, count = torch.zeros(()), 0
        for slot in (slot for pack in packs for slot in pack):
            ids = torch.tensor(list(slot.value))
            loss = loss + functional.cross_entropy(model(ids[:-1]), ids[1:], reduction="sum")
            count += len(ids) - 1
        fresh = together(reader.take())
        known += fresh
        if RANK == 0:
            with EVENTS.open("a") as stream:  # before the step: what replays it reads this, not the disk
                stream.write("".join(map(event_line, fresh)))
                stream.flush()
                os.fsync(stream.fileno())
        sums = torch.tensor([float(loss), float(count)])
        optimizer.zero_grad()
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        for tensor in (sums, *gradients) if RANKS > 1 else ():
            torch.distributed.all_reduce(tensor)
        for gradient in gradients:
            gradient /= sums[1]  # a mean over all bytes, however many each rank was dealt
        optimizer.step()
        if RANK == 0:
            print(
                json.dumps({"step": position + 1, "bytes": int(sums[1]), "loss": float(sums[0] / sums[1])}), flush=True
            )
            state = {
                "schedule": plan.digest,
                "position": position + 1,
                "events": events_digest(known, position + 1),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            torch.save(state, STATE.with_suffix(".tmp"))
            STATE.with_suffix(".tmp").replace(STATE)


def together(fresh: list[Replaced]) -> list[Replaced]:
    """What any rank replaced."""
    if RANKS == 1:
        return fresh
    heard: list[list[Replaced]] = [[] for _ in range(RANKS)]
    torch.distributed.all_gather_object(heard, fresh)
    return sorted((event for told in heard for event in told), key=lambda event: event.place)


if __name__ == "__main__":
    if RANKS > 1:
        torch.distributed.init_process_group("gloo")
    main()
    if RANKS > 1:
        torch.distributed.destroy_process_group()
