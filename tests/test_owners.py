"""Whose process has died: only what is known for certain, from wherever it is looked at."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from entropic.leases import is_alive, is_gone, new_owner
from tests import scripts

IMPORTS = "import os, subprocess, sys; from entropic.leases import is_gone, new_owner\n"

OWNER = f"{IMPORTS}print(new_owner(), flush=True); sys.stdin.read()"

ASKED = f"{IMPORTS}print(is_gone(sys.argv[1]))"


def python(source: str, *args: str) -> list[str]:
    """The command of another interpreter that runs a piece of code."""
    return [sys.executable, "-c", source, *args]


def started(command: Sequence[str]) -> "subprocess.Popen[str]":
    """A program under way, and lines to and from it."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=ENVIRONMENT)


ENVIRONMENT = {**scripts.ENVIRONMENT, "PATH": os.environ.get("PATH", os.defpath)}


def answer(*command: str) -> str:
    """What a program prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=ENVIRONMENT)
    return done.stdout.strip()


def elsewhere(*prefix: str) -> list[str]:
    """The beginning of a command that runs elsewhere; skips where this cannot be had."""
    try:
        command = [*prefix, *python(IMPORTS)]
        subprocess.run(command, capture_output=True, check=True, timeout=30, env=ENVIRONMENT)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"this needs root, and what it brings: {error}")
    return list(prefix)


@contextmanager
def owner() -> Iterator[str]:
    """The name of another process of this machine, for as long as it lives."""
    with started(python(OWNER)) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def test_an_owner_is_known_by_more_than_its_pid() -> None:
    """PIDs come round again: a process that began at another time is another one."""
    mine = new_owner()
    assert not is_gone(mine)
    assert new_owner() != mine
    with owner() as dead:
        assert is_alive(dead)
        assert not is_gone(dead)
    assert is_gone(dead)
    assert not is_alive(dead)
    host, place, pid, began, nonce = json.loads(dead)
    recycled = json.dumps([host, place, os.getpid(), began, nonce])
    assert is_gone(recycled)
    boot, pids, times = place
    for other in (
        ["another boot", pids, times],
        [boot, "pid:[1]", times],
        [boot, pids, "time:[1]"],
    ):
        unknown = json.dumps([host, other, pid, began, nonce])
        assert not is_gone(unknown)
        assert not is_alive(unknown)


@pytest.mark.parametrize(
    "name",
    ["register", "{}", "[1]", "", "[1,2,3,4,5]", '["", null, 1, "1", ""]'],
)
def test_what_is_no_owners_name_is_nobodys_who_is_gone(name: str) -> None:
    """Whoever has written it."""
    assert not is_gone(name)


@pytest.mark.parametrize("pid", [0, -1, 2**31, 2**80, True])
def test_what_is_no_pid_is_nobodys_who_is_gone(pid: int) -> None:
    """No process has it, and none ever had."""
    host, place, _, began, nonce = json.loads(new_owner())
    assert not is_gone(json.dumps([host, place, pid, began, nonce]))


def test_an_owner_that_has_ended_and_is_not_yet_buried_is_gone() -> None:
    """A zombie runs nothing any more."""
    process = started(python(OWNER))
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    assert not is_gone(name)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(name)
    process.communicate()


@contextmanager
def no_descriptors() -> Iterator[None]:
    """A process that can open nothing more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_who_can_open_no_file_takes_nobody_for_dead() -> None:
    """Its own want of descriptors says nothing of others; later it sees again."""
    mine = new_owner()
    with owner() as theirs, no_descriptors():
        assert not is_gone(theirs)
        assert not is_gone(mine)
    assert is_gone(theirs)


SHORT_OF_FILES = f"""{IMPORTS}
import resource
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
name = new_owner()
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
print(is_gone(name), is_gone(new_owner()))
print(name, new_owner(), sep="\\n")
"""


def test_who_could_open_no_file_when_it_was_named_is_not_taken_for_dead() -> None:
    """Nothing is known of it but its lease; its next store is known again."""
    answers, first, second = answer(*python(SHORT_OF_FILES)).split("\n")
    assert answers == "False False"
    assert not is_gone(first)
    assert is_gone(second)


def test_another_user_who_may_not_see_processes_takes_none_for_dead() -> None:
    """With ``hidepid=2``, those of others look as if there were none."""
    hidden = "mount -t proc -o hidepid=2 proc /proc"
    nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups"
    prefix = elsewhere("unshare", "--mount", "sh", "-c", f'{hidden} && exec {nobody} "$@"', "sh")
    with owner() as live:
        assert answer(*prefix, *python(ASKED, live)) == "False"
    assert answer(*prefix, *python(ASKED, live)) == "True"


def test_in_another_time_namespace_no_process_is_taken_for_dead() -> None:
    """There, all have begun at another time."""
    prefix = elsewhere("unshare", "--time", "--boottime", "1000")
    with owner() as live:
        assert answer(*prefix, *python(ASKED, live)) == "False"


# A container with the /proc of its host, where its own PID is an unrelated process's.
CONTAINED = f"""{IMPORTS}
open("/proc/sys/kernel/ns_last_pid", "w").write(str(int(sys.argv[1]) - 1))
owner = subprocess.Popen(
    [sys.executable, "-c", {OWNER!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
)
name = owner.stdout.readline().strip()
print(owner.pid, is_gone(name), flush=True)
sys.stdin.readline()
print(is_gone(name), flush=True)
owner.communicate()
"""


def test_with_another_namespaces_proc_no_process_is_taken_for_dead() -> None:
    """Its PIDs mean other processes than one's own."""
    prefix = elsewhere("unshare", "--pid", "--fork")
    with (
        started(["cat"]) as stranger,
        started([*prefix, *python(CONTAINED, str(stranger.pid))]) as inside,
    ):
        assert inside.stdout is not None
        assert inside.stdin is not None
        if inside.stdout.readline() != f"{stranger.pid} False\n":
            pytest.skip("no PID could be had by choice")
        stranger.communicate()
        inside.stdin.write("\n")
        inside.stdin.flush()
        assert inside.stdout.readline() == "False\n"
