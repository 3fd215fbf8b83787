"""One supervisor per home; what a killed one leaves behind does not count."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

from meetara.home import Up, hold, locate, lock_owner, record_path, running, write_record
from protocol import Code, LabError

HOLDER = """
import sys, time
from pathlib import Path
from meetara.home import Up, hold, write_record
import os
home = Path(sys.argv[1])
with hold(home):
    write_record(home, Up(pid=os.getpid(), host="127.0.0.1", port=4321, lab="other"))
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MEETARA_")]:
        monkeypatch.delenv(name)


def test_a_second_holder_is_told_the_pid_of_the_first(tmp_path):
    with hold(tmp_path):
        with pytest.raises(LabError, match=f"pid {os.getpid()}") as caught, hold(tmp_path):
            pass
        assert caught.value.code is Code.BUSY
        assert lock_owner(tmp_path) == os.getpid(), "the failed attempt took nothing away"


def test_leaving_removes_lock_and_record(tmp_path):
    with hold(tmp_path):
        write_record(tmp_path, Up(pid=os.getpid(), host="127.0.0.1", port=1, lab="lab"))
        assert running(tmp_path) is not None
    assert running(tmp_path) is None
    assert list((tmp_path / "run").iterdir()) == []


def test_leaving_a_home_that_was_replaced_takes_nothing_from_its_new_holder(tmp_path):
    home = tmp_path / "home"
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(hold(home))
        home.rename(tmp_path / "old")
        second.enter_context(hold(home))
        write_record(home, Up(pid=os.getpid(), host="127.0.0.1", port=1, lab="lab"))
        first.close()
        assert running(home) is not None


def test_a_killed_holder_frees_the_home(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    up = running(tmp_path)
    assert (up.pid, up.port) == (process.pid, 4321)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert record_path(tmp_path).exists(), "the record stays, but does not count"
    assert running(tmp_path) is None
    with hold(tmp_path):
        assert lock_owner(tmp_path) == os.getpid()


def test_the_broker_is_found_by_flag_then_environment_then_the_running_lab(tmp_path, monkeypatch):
    with hold(tmp_path):
        write_record(tmp_path, Up(pid=os.getpid(), host="127.0.0.1", port=4321, lab="other"))
        address, lab, home = locate(home=tmp_path)
        assert (address.port, lab, home) == (4321, "other", tmp_path)
        monkeypatch.setenv("MEETARA_PORT", "4322")
        assert locate(home=tmp_path)[0].port == 4322
        assert locate(home=tmp_path, port=4323)[0].port == 4323
    monkeypatch.delenv("MEETARA_PORT")
    assert locate(home=tmp_path)[0].port == 1883


def test_a_home_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="--home") as caught, hold(tmp_path / "file"):
        pass
    assert caught.value.code is Code.CONFIGURATION
