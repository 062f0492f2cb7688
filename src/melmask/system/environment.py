"""What the environment must say before PyTorch is loaded."""

from collections.abc import Mapping

_SPINS = "1000"
"""How often a thread looks for its next work before it sleeps. By default it looks for milliseconds, at the end of every
operation; if another program has taken the core of the thread that it waits for, that is nearly all of the time. So few
looks take 20 microseconds, about as long as threads that all run need to meet (docs/log.md)."""
_SET_BY_USERS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def thread_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that let PyTorch's threads wait for each other asleep; none if the user has set one."""
    if any(name in environment for name in _SET_BY_USERS):
        return {}
    # GNU's library counts looks. That of Intel and LLVM, on macOS and Windows, counts milliseconds.
    return {"GOMP_SPINCOUNT": _SPINS, "KMP_BLOCKTIME": "1"}
