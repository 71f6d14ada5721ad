"""What a failed operation says."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def fails(number: int) -> Iterator[None]:
    """Expects an OSError with the errno `number`."""
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == number, errno.errorcode.get(caught.value.errno or 0)
