"""Requests to stop: heard whatever the process does at that moment."""

import os
import signal
import subprocess
import sys

import pytest

from models.training.stopping import stop_requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_a_request_and_the_second_ctrl_c_stops_at_once(number: signal.Signals) -> None:
    with stop_requests() as requested:
        os.kill(os.getpid(), number)
        assert requested.wait(30)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_is_heard_by_a_process_that_is_about_to_wait_for_it() -> None:
    program = """
import os, signal
from models.training.stopping import stop_requests
with stop_requests() as requested:
    with requested._cond:  # as `wait` holds it for a moment
        os.kill(os.getpid(), signal.SIGINT)
    print(requested.wait(20))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"


def test_a_process_that_outlives_its_terminal_does_so() -> None:
    """As `nohup` has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as requested:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            assert requested.wait(30)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
