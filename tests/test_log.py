"""Native events in Python's `logging`, and on standard error."""

import errno
import logging
import socket
import sys
from pathlib import Path

import pytest

from virtiofs import Passthrough, _core, cli
from virtiofs.testing import Guest


def test_events_reach_logging(share: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="virtiofs"), Guest(Passthrough(share)) as guest:
        guest.read_file("hello")
    connected = [record for record in caplog.records if "a VMM is connected" in record.message]
    assert len(connected) == 1
    assert connected[0].levelno == logging.INFO
    assert connected[0].name.startswith("virtiofs.device")
    assert connected[0].fields["tag"] == "testing"  # type: ignore[attr-defined]
    assert not any(record.levelno < logging.INFO for record in caplog.records)


def test_level_follows_the_logger(share: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, logger="virtiofs"), Guest(Passthrough(share)) as guest:
        guest.read_file("hello")
    assert not caplog.records


def test_a_handler_that_fails_does_not_stop_the_server(share: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(logging.Handler):
        seen = 0

        def emit(self, record: logging.LogRecord) -> None:
            self.seen += 1
            raise RuntimeError("no disk")

    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: unraisable.append(what.exc_value))
    handler, logger = Failing(), logging.getLogger("virtiofs")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with Guest(Passthrough(share)) as guest:
            assert guest.read_file("hello")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert handler.seen == len(unraisable) > 0
    assert all(isinstance(error, RuntimeError) for error in unraisable)


def test_syslog(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(tmp_path / "log"))
        syslog.settimeout(20)
        _core.log_to_syslog("info", str(tmp_path / "log"))
        try:
            assert _core.log_sink() == "syslog"
            _core.log("debug", "not this")
            _core.log("warn", "this", number=1, text="two words", line="a\nb", none="")
        finally:
            _core.log_stop()
        line = syslog.recv(1000).decode()
    assert line.startswith("<28>virtiofs[")
    assert line.endswith(r']: this number=1 text="two words" line=a\nb none=""')
    assert _core.log_sink() == "nowhere"


def test_syslog_that_is_missing_is_said(
    share: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(level: str) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(_core, "log_to_syslog", missing)
    assert cli.main(["serve", str(share), "--socket", str(tmp_path / "s"), "--syslog"]) == 2
    said = capsys.readouterr().err
    assert "there is no syslog to log to" in said
    assert said.endswith("leave --syslog out\n")
    assert not (tmp_path / "s").exists()


def test_syslog_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _core.log_to_syslog("info", str(tmp_path / "log"))
