"""The compiled loops: found in the cache or made on first use by the machine's C compiler, and loaded.

A C compiler is `cc`, `gcc` or `clang` on the PATH (or what the environment variable STATEFORM_CC names), else that of
the extra `cpu` (the package ziglang: a C compiler as a wheel). Nothing is downloaded. The library lies in the folder
STATEFORM_CACHE, else in that of the user's caches, one file for each source, compiler, its flags, processor and
precision. STATEFORM_CFLAGS holds flags to add to the compiler's, after ours: `make sanitize` gives those of sanitizers.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import torch

from ..files import rename_durably

NAMES = ("loops.c", "vectors.h", "matrix.h", "channel.h", "conv.h", "step.h", "norm.h", "modes.h")
SOURCES = [Path(__file__).with_name(name) for name in NAMES]
FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread", "-ffp-contract=fast"]
HINTS = [["-march=native", "-mprefer-vector-width=512"], ["-march=native"], ["-mcpu=native"], []]
"""For the processor at hand; the first that the compiler takes."""
_building = threading.Lock()


class UnavailableError(Exception):
    """Why there are no compiled loops here."""


_found: dict[int, ctypes.CDLL | UnavailableError] = {}


def library(precision: int) -> ctypes.CDLL:
    """Load the loops for float32 (32) or float64 (64).

    Raises:
        UnavailableError: no compiler, or it failed; once asked, the answer stays.
    """
    if precision not in _found:  # no lock once it is there: a fork might copy one that another thread holds
        with _building:
            if precision not in _found:
                _found[precision] = _library(precision)
    found = _found[precision]
    if isinstance(found, UnavailableError):
        raise found
    return found


def _library(precision: int) -> ctypes.CDLL | UnavailableError:
    if sys.platform == "win32":
        return UnavailableError("the compiled loops need POSIX threads; on Windows the torch forms are used")
    try:
        compiler = find_compiler()
        name = f"loops{precision}-{_key(compiler, precision)}.so"
        for folder in (cache_folder, _own_temporary_folder):
            try:
                return _load(_made(folder(), name, compiler, precision))
            except OSError as error:
                failure = error
    except UnavailableError as error:
        return error
    return UnavailableError(f"the library of compiled loops could not be written or loaded ({failure})")


def _own_temporary_folder() -> Path:
    """Make a folder among the temporary files in which no one else can have put a library."""
    folder = Path(tempfile.gettempdir()) / f"stateform-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="stateform-"))


def find_compiler() -> list[str]:
    """Find the command of a C compiler.

    Raises:
        UnavailableError: there is none.
    """
    named = os.environ.get("STATEFORM_CC")
    if named:
        command = shlex.split(named)
        if shutil.which(command[0]) is None:
            raise UnavailableError(f"STATEFORM_CC names {named!r}, which is no command here")
        return command
    for name in ("cc", "gcc", "clang"):
        if (found := shutil.which(name)) is not None:
            return [found]
    if importlib.util.find_spec("ziglang") is not None and not os.environ.get("STATEFORM_NO_ZIG"):
        return [sys.executable, "-m", "ziglang", "cc"]
    raise UnavailableError("there is no C compiler; pip install 'stateform[cpu]' brings one, without any other set-up")


def added_flags() -> list[str]:
    """List the flags that the environment variable STATEFORM_CFLAGS adds; of two that disagree a compiler takes the
    last.
    """
    return shlex.split(os.environ.get("STATEFORM_CFLAGS", ""))


def cache_folder() -> Path:
    """Say where the library is kept."""
    given = os.environ.get("STATEFORM_CACHE")
    if given:
        return Path(given).resolve()
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]).resolve() / "stateform"
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home
        return _own_temporary_folder()
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "stateform"


def _key(compiler: list[str], precision: int) -> str:
    flags = [*FLAGS, *added_flags()]
    parts = [*(path.read_bytes() for path in SOURCES), repr((compiler, flags, HINTS, precision)).encode(), _described()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@functools.cache
def _described() -> bytes:
    """Describe what the library is made for: a home folder may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))})).encode()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()


def processor() -> str:
    """Name the processor at hand, the same for all of its kind."""
    return hashlib.sha256(_described()).hexdigest()[:12]


def _made(folder: Path, name: str, compiler: list[str], precision: int) -> Path:
    """Load the library in a folder, compiled if it is not there yet."""
    path = folder / name
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, draft = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    print(
        f"stateform: compiling its loops for this processor (float{precision}: once, 5 to 20 s; kept in {folder})",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    try:
        said = ""
        for hint in HINTS:
            flags = [*FLAGS, *hint, *added_flags(), f"-DPRECISION={precision}"]
            command = [*compiler, *flags, "-o", draft, str(SOURCES[0])]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                rename_durably(draft, path)
                return path
            said = (done.stderr or done.stdout).strip()
        first = said.splitlines()[0] if said else "it said nothing"
        raise UnavailableError(f"the C compiler {' '.join(compiler)} failed: {first}")
    finally:
        Path(draft).unlink(missing_ok=True)


def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    region = _parallel_region()
    library.stateform_threads(ctypes.cast(region, ctypes.c_void_p) if region is not None else None)
    return library


def _parallel_region() -> Any:
    """Find the start of torch's own thread team: another team would wait for it, and it for the other."""
    folder = Path(torch.__file__).parent / "lib"
    for path in [*folder.glob("libgomp*"), *folder.glob("libomp*"), *folder.glob("libiomp*")]:
        try:
            loaded = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            return loaded.GOMP_parallel
        except (OSError, AttributeError):
            continue
    return None
