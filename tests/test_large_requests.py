"""Requests above 1 MiB: what a ring has descriptors for, one READ or WRITE carries."""

import os
from pathlib import Path

import pytest

from virtiofs import NONE, Passthrough
from virtiofs.testing import Guest

PAGE = 4096
ROOT = 1


@pytest.mark.parametrize(
    ("queue_size", "max_pages", "largest"),
    [
        (256, 1024, 252 * PAGE),  # the ring's descriptors, less four for headers and structs
        (1024, 1024, 1020 * PAGE),
        (2048, 1024, 4 << 20),
        (8192, 4096, 4 << 20),  # the server's own limit
        (2048, 512, 2 << 20),
    ],
)
def test_one_request_carries_what_ring_and_server_allow(
    share: Path, queue_size: int, max_pages: int, largest: int
) -> None:
    data = os.urandom(largest)
    with Guest(Passthrough(share, NONE), queue_size=queue_size, max_pages=max_pages) as guest:
        client = guest.client
        assert client.session["max_io"] == largest
        entry, opened = client.create(ROOT, "large", os.O_RDWR)
        assert client.write(entry.node, opened.handle, 0, data) == largest
        assert (share / "large").read_bytes() == data
        assert client.read(entry.node, opened.handle, 0, largest) == data
        # Off the pages' borders, and across the end of the file.
        assert client.write(entry.node, opened.handle, 4097, data[:-5000]) == largest - 5000
        assert (
            client.read(entry.node, opened.handle, 4097, largest)
            == (data[:-5000] + data[largest - 903 :])[: largest - 4097]
        )
        assert guest.server is not None
        requests = guest.server.stats().requests
        assert (requests["WRITE"], requests["READ"]) == (2, 2)
        client.release(entry.node, opened.handle)
