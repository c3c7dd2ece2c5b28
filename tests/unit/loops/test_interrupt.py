import signal
import threading

import pytest

from lorasmith.loops.stop_signals import StopRequest, stop_on_interrupt


def test_first_interrupt_requests_a_stop_and_second_raises() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt() as request:
        assert not request.is_requested
        signal.raise_signal(signal.SIGINT)
        assert request.is_requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_handler_is_removed_when_the_block_fails() -> None:
    before = signal.getsignal(signal.SIGINT)

    def fail() -> None:
        with stop_on_interrupt():
            assert signal.getsignal(signal.SIGINT) is not before
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_do_not_handle_signals() -> None:
    before = signal.getsignal(signal.SIGINT)
    handlers: list[tuple[StopRequest, object]] = []

    def work() -> None:
        with stop_on_interrupt() as request:
            handlers.append((request, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers[0][0].is_requested is False
    assert handlers[0][1] is before
