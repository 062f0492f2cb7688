"""How much memory this process uses, as far as the operating system says."""

import ctypes
import mmap
import sys
from pathlib import Path

_BYTES_PER_MAXRSS = 1 if sys.platform == "darwin" else 1024
_STATM = Path("/proc/self/statm")


class _Counters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of Windows."""

    _fields_ = (
        ("cb", ctypes.c_uint32),
        ("page_faults", ctypes.c_uint32),
        ("peak_working_set", ctypes.c_size_t),
        ("working_set", ctypes.c_size_t),
        ("quotas_and_page_file", ctypes.c_size_t * 6),
    )


def peak_bytes() -> int | None:
    """Return the most memory that this process has used at once, or None where that is unknown."""
    try:
        import resource
    except ImportError:
        # Windows has no such module.
        return _windows_counters().peak_working_set or None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_PER_MAXRSS


def current_bytes() -> int | None:
    """Return the memory that this process uses now, or None where that is unknown."""
    if not _STATM.exists():
        return _windows_counters().working_set or None
    return int(_STATM.read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE


def _windows_counters() -> _Counters:
    """Ask Windows; all counters are 0 on other systems, or if it does not answer."""
    counters = _Counters(cb=ctypes.sizeof(_Counters))
    if sys.platform == "win32":
        kernel = ctypes.WinDLL("kernel32")
        # A handle is a pointer, which does not fit the integer that ctypes assumes.
        kernel.GetCurrentProcess.restype = ctypes.c_void_p
        kernel.K32GetProcessMemoryInfo.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Counters), ctypes.c_uint32)
        kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb)
    return counters
