"""StopSignal, in real processes: a request is noticed whatever the main thread does, and always ends in 75."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from job.errors import Interrupted
from job.infra.signals import StopSignal

ROOT = Path(__file__).parents[2]
HEAD = """
import hashlib, os, signal, sys, threading, time
from job.infra.signals import StopSignal
def in_c():  # minutes in one C call
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
"""
BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@pytest.fixture
def start():
    """Start Python code after HEAD; it has printed its first line, `ready`, when this returns."""
    started = []

    def start(code: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-uc", HEAD + code],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def until(condition, seconds: float = 10.0) -> bool:
    """Whether `condition` becomes true in time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


@pytest.fixture
def stop():
    with StopSignal(grace_seconds=60).install() as stop:
        yield stop
        stop.disarm()


@BOTH
def test_a_signal_is_noticed_during_a_long_c_call(start, number):
    """The flag is set while the main thread has been in one C call all the time."""
    process = start("""
stop = StopSignal(60).install()
def tell():
    while not stop.requested: time.sleep(0.01)
    print(stop.reason)
threading.Thread(target=tell, daemon=True).start()
print("ready")
in_c()
""")
    process.send_signal(number)

    assert process.stdout.readline() == f"{number.name} received\n"


@BOTH
def test_a_second_signal_leaves_at_once(start, number):
    """The second signal ends the process with 75, in the middle of a C call, and says why on stderr."""
    process = start("""
stop = StopSignal(60).install()
stop.on_request = print
print("ready")
in_c()
""")
    process.send_signal(number)
    process.stdout.readline()
    time.sleep(0.15)
    process.send_signal(number)

    assert process.wait(10) == 75
    assert process.stderr.read() == f"Interrupted: {number.name} received, then {number.name}\n"


def test_the_watchdog_leaves_before_the_grace_ends(start):
    """With 1 s of grace a process that goes on working ends itself with 75 in less than that second."""
    process = start("StopSignal(1).install(); print('ready'); in_c()")
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)

    assert process.wait(10) == 75
    assert time.monotonic() - started > 0.5
    assert process.stderr.read() == "Interrupted: SIGTERM received, the grace of 1 s is over\n"


def test_no_grace_leaves_at_the_first_signal(start):
    """With a grace of 0 the first signal ends the process with 75."""
    process = start("StopSignal(0).install(); print('ready'); in_c()")
    process.send_signal(signal.SIGTERM)

    assert process.wait(10) == 75


def test_no_grace_leaves_one_word(start):
    """With a grace of 0 nothing is said about stopping soon, before or after the word about leaving now."""
    process = start("""
stop = StopSignal(0).install()
stop.on_request = stop.on_leave = print
print("ready")
in_c()
""")
    process.send_signal(signal.SIGTERM)

    assert process.communicate(timeout=10) == ("SIGTERM received, no grace to save in\n", "")


def test_the_hook_gets_the_reason_before_the_end(start):
    """`on_leave` is called before the process ends, and then speaks in place of the line on stderr."""
    process = start("stop = StopSignal(0).install(); stop.on_leave = print; print('ready'); in_c()")
    process.send_signal(signal.SIGTERM)

    assert process.communicate(timeout=10) == ("SIGTERM received, no grace to save in\n", "")


@pytest.mark.parametrize("hook", ["lambda reason: time.sleep(60)", "lambda reason: 1 / 0"])
def test_a_bad_hook_cannot_hold_the_process(start, hook):
    """A hook that hangs or fails delays the end by a moment, and the reason is still said."""
    process = start(f"stop = StopSignal(0).install(); stop.on_leave = {hook}; print('ready'); in_c()")
    process.send_signal(signal.SIGTERM)

    assert process.wait(10) == 75
    assert "SIGTERM received" in process.stderr.read()


def test_a_disarmed_process_ends_on_its_own(start):
    """After `disarm` neither more signals nor the end of the grace change the exit code."""
    process = start("""
stop = StopSignal(1.0).install()
print("ready")
while not stop.requested: time.sleep(0.01)
stop.disarm()
print("disarmed")
time.sleep(1.0)
sys.exit(0)
""")
    process.send_signal(signal.SIGTERM)
    process.stdout.readline()
    time.sleep(0.15)
    process.send_signal(signal.SIGTERM)

    assert process.wait(10) == 0


def test_one_request_that_arrives_twice_is_one(start):
    """`timeout` signals the process and then its group: that is no second request."""
    process = start("""
stop = StopSignal(60).install()
print("ready")
os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.3)
sys.exit(3)
""")

    assert process.wait(10) == 3


def test_a_signal_to_a_forked_child_is_not_a_request(start):
    """Ctrl-C reaches forked workers as well; the parent, which shares a socket with them, hears only its own."""
    process = start("""
stop = StopSignal(60).install()
if (child := os.fork()) == 0:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
status = os.waitpid(child, 0)[1]
time.sleep(0.2)
print("ready")
print(os.WTERMSIG(status) == signal.SIGTERM, stop.requested)
""")

    assert process.stdout.readline() == "True False\n"


def test_listening_needs_nothing_slow(start):
    """Installing the handlers loads neither torch nor any library that is not Python's own."""
    process = start("""
StopSignal(1).install()
print("ready")
print({name.partition(".")[0] for name in sys.modules} & {"torch", "numpy", "structlog", "rich", "boto3"} or None)
""")

    assert process.stdout.readline() == "None\n"


def test_check_raises_once_asked_to_stop(stop):
    """`check` does nothing before a signal and raises Interrupted with its name after."""
    stop.check()
    os.kill(os.getpid(), signal.SIGTERM)
    assert until(lambda: stop.requested)

    with pytest.raises(Interrupted, match="SIGTERM received"):
        stop.check()


def test_time_left_is_endless_until_a_signal(stop):
    """`remaining` is infinite at first, and after a signal the grace less the margin for leaving."""
    before = stop.remaining()
    os.kill(os.getpid(), signal.SIGINT)
    assert until(lambda: stop.requested)

    assert before == math.inf
    assert 50 < stop.remaining() <= 58


def test_signals_of_others_are_not_requests(stop):
    """A signal that something else handles in Python wakes the watchdog and is passed over."""
    heard = []
    previous = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    os.kill(os.getpid(), signal.SIGUSR1)
    assert until(lambda: heard)
    signal.signal(signal.SIGUSR1, previous)
    time.sleep(0.05)

    assert not stop.requested


def test_uninstalling_puts_the_handlers_back():
    """The handlers and the wakeup descriptor that were there before are there again."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    StopSignal(1).install().uninstall()
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)

    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert wakeup == -1
