"""docs/format.md: its example is a repository's real bytes, and its lists are the code's."""

from __future__ import annotations

import json
import re
from pathlib import Path

from modelfs.codecs.registry import CODECS
from modelfs.ids import Digest, ModelName, ObjectId
from modelfs.repository import catalog, history, keys, pack
from modelfs.repository.info import parse_info

TEXT = (Path(__file__).parents[2] / "docs/format.md").read_text()
EXAMPLE = TEXT.partition("## 9. An example")[2]
INFO, CATALOG, HISTORY, HEADER = re.findall(r"```json\n(.*)\n```", EXAMPLE)


def test_the_examples_objects_name_each_other() -> None:
    found = catalog.parse(CATALOG.encode())
    assert parse_info(INFO.encode(), "the document").id == found.repository
    assert found.serialise() == CATALOG.encode()
    ((model, digest),) = found.models.items()
    assert (model, digest) == (ModelName("acme", "tiny"), ObjectId.of(HISTORY.encode()))
    rows = history.parse(HISTORY.encode(), model)
    for key in (keys.history(digest), keys.manifest(rows.versions[0].manifest)):
        assert f"`{key}`" in EXAMPLE


def test_the_examples_chunks_and_footer_are_what_they_are_said_to_be() -> None:
    dumps = re.findall(r"```\n([0-9a-f\s|]+)\n```", EXAMPLE)
    stored, footer = (bytes.fromhex(dump.replace("|", "")) for dump in dumps)
    assert pack.tail_span(footer, 863, "pack")[:2] == (len(stored), 780)
    for data, name, at, codec in ((b"hello\n", "8e4c7c1b…9a99", slice(0, 6), "raw"),
                                  (bytes(600), "2f215b19…4ce2", slice(6, 19), "lz4")):
        assert f"{Digest.of(data).hex()[:8]}…{Digest.of(data).hex()[-4:]}" == name
        out = bytearray(len(data))
        CODECS[codec].decode(memoryview(stored)[at], memoryview(out))
        assert (bytes(out), name in EXAMPLE) == (data, True)


def test_every_column_of_a_manifest_and_every_codec_is_described() -> None:
    for name in [*json.loads(HEADER), *CODECS]:
        assert f"`{name}`" in TEXT or name == "__metadata__"
