"""How PyTorch's threads wait for each other, which the environment must say before PyTorch is loaded."""

import os
import sys
from collections.abc import Mapping

_LOOKS = "1000"
"""How often a thread looks for its next work before it sleeps. By default it looks for milliseconds, at the end of
every operation. If another program has the core of the thread that it waits for, nearly all of the time is lost. So few
looks take 20 microseconds, about as long as threads need to meet that all run."""
_SET_BY_USERS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def thread_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that let threads wait for each other asleep; none if the user has set one of them."""
    if any(name in environment for name in _SET_BY_USERS):
        return {}
    # GNU's library counts looks. That of Intel and LLVM, which macOS and Windows have, counts milliseconds.
    return {"GOMP_SPINCOUNT": _LOOKS, "KMP_BLOCKTIME": "1"}


def let_threads_sleep() -> None:
    """Set these variables, unless PyTorch is loaded already and would not see them."""
    if "torch" not in sys.modules:
        os.environ.update(thread_environment(os.environ))
