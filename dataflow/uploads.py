"""A corpus built into an object store: parts named by their bytes, receipts beside them, the manifest last.

    worker   split -> 00000.tar, .idx in a folder of its own machine -> the store -> the receipt: now it is built
    driver   receipts -> index, ledger, manifest on its machine      -> the store, the manifest after all others

<store>/.building/<name>/       plan and receipts: whoever has them goes on, on whichever machine
<store>/<name>/                 00000-<12 hex digits of its sha256>.tar, ..., and no corpus before its manifest is there

A store has no rename, link or lock; here none is wanted. What is put there twice is the same bytes under the same name.
"""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dataflow import shards, stores
from dataflow.build import Receipt, ShardJob, read_receipt, receipt_path
from dataflow.folders import folder
from dataflow.readers import Split
from dataflow.stores import StoreError

_PART = re.compile(r"(\d{5,})-[0-9a-f]{12}\.tar(\.idx)?")


def file_of(receipt: Receipt) -> str:
    """What a shard is called in a store."""
    return shards.part(receipt.number, receipt.sha256)


def build(job: ShardJob, split: Split, number: int, parts: Path, begun: Path) -> None:
    """Build a shard on this machine and put it into a store, its receipt last; an unchanged one is copied there.

    Raises:
        ValueError: as `ShardJob.build`.
        OSError: the disk for temporary files or the store fails.
    """
    with TemporaryDirectory(prefix="interlace-") as made:
        here = Path(made)
        job.build(split, number, here)
        receipt = read_receipt(receipt_path(here, number))
        for suffix in ("", ".idx"):
            there = parts / f"{file_of(receipt)}{suffix}"
            if receipt.linked is None:
                stores.put(here / f"{shards.name(number)}{suffix}", there)
            else:
                _copy(folder(receipt.linked) / there.name, there)
        stores.put(receipt_path(here, number), receipt_path(begun, number))


def _copy(old: Path, new: Path) -> None:
    try:
        stores.copy(old, new)
    except FileNotFoundError:
        raise StoreError(f"{old} is gone from its corpus: remove {old.parent} and build again") from None


def publish(work: Path, manifest: dict[str, Any], parts: Path, final: Path, begun: Path) -> None:
    """Make a corpus of parts: what was committed to a folder of this machine is put beside them, the manifest last.

    Args:
        work: with index, ledger, manifest and what Energon wants. parts: where the shards lie. final: the corpus.
        begun: where its receipts lie; they go when it is there.
    Raises:
        StoreError: a part is not there any more; its receipt goes, so that it is built again.
    """
    lying = {each.path.name: each.size for each in stores.entries(parts)}
    files = {f"{shard['file']}{suffix}": number for number, shard in _shards(manifest) for suffix in ("", ".idx")}
    lost = {number for file, number in files.items() if file not in lying}
    lost |= {number for number, shard in _shards(manifest) if lying.get(shard["file"]) != shard["size"]}
    if lost:
        stores.remove([receipt_path(begun, number) for number in sorted(lost)])
        raise StoreError(
            f"{len(lost)} shards of {parts}, {shards.name(min(lost))} first, are not there as they were put: "
            "the same command builds them again"
        )
    if parts != final:
        stores.at_once(lambda file: stores.copy(parts / file, final / file), sorted(files))
        lying = {each.path.name: each.size for each in stores.entries(final)}
    stores.remove([final / file for file in lying if _PART.fullmatch(file) and file not in files])
    beside = [path for path in sorted(work.rglob("*")) if path.is_file()]
    last = work / "manifest.json"
    stores.at_once(
        lambda path: stores.put(path, final.joinpath(*path.relative_to(work).parts)),
        [path for path in beside if path != last],
    )
    stores.put(last, final / last.name)
    discard(begun)


def _shards(manifest: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    return list(enumerate(manifest["shards"]))


def discard(begun: Path, parts: Path | None = None) -> None:
    """Remove what a build left: plan and receipts, then the parts, unless they are those of a finished corpus."""
    stores.remove([each.path for each in stores.under(begun)])
    lying = [each.path for each in stores.entries(parts)] if parts is not None else []
    if not any(path.name == "manifest.json" for path in lying):
        stores.remove([path for path in lying if _PART.fullmatch(path.name)])
