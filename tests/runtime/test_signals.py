"""Signals are remembered, and the handlers before are put back."""

from __future__ import annotations

import os
import signal

import pytest

from megatron_lm_zh.runtime.signals import StopRequest


@pytest.mark.parametrize("number", StopRequest.SIGNALS)
def test_the_first_signal_is_remembered(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in StopRequest.SIGNALS]
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number.name
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == number.name
    assert [signal.getsignal(each) for each in StopRequest.SIGNALS] == before


def test_ctrl_c_after_a_request_interrupts() -> None:
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.received == "SIGUSR1"
