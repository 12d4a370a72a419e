"""Build MinkowskiEngine into this environment, or take the wheel that an earlier build left (`make minkowski`).

Its thirteen C++ files spend nearly all of their time on torch's headers, which each of them includes: as one file they
take an eighth. The compiler's options stay its own but for the debug symbols that Python asks for.

A wheel fits one torch, Python and compiler; they are part of the name of its folder in the user's cache, and it counts
only if it imports.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENT = HERE / "requirements-minkowski.txt"
# In setup.py: the sources of a build without CUDA.
SOURCES = re.compile(r'("cpu": \[\s*CppExtension,\s*)\[([^]]*)\]')
FLAGS = "-g0"
# The alias that MinkowskiEngine 0.5.4 still uses is gone since Python 3.10.
IMPORT = "import collections, collections.abc; collections.Sequence = collections.abc.Sequence; import MinkowskiEngine"
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")


def works() -> bool:
    """Whether MinkowskiEngine imports in this environment."""
    return subprocess.run([sys.executable, "-W", "ignore", "-c", IMPORT], capture_output=True).returncode == 0


def cache_folder() -> Path:
    """Where a wheel for this environment is kept."""
    compiler = [
        subprocess.run([*_compiler(), option], capture_output=True, text=True, check=True).stdout
        for option in ("-dumpfullversion", "-dumpmachine")
    ]
    made_with = [
        REQUIREMENT.read_text(),
        Path(__file__).read_text(),
        version("torch"),
        sysconfig.get_config_var("SOABI"),
        *compiler,
        os.environ.get("CFLAGS", ""),
    ]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "text4point" / f"minkowski-{hashlib.sha256(repr(made_with).encode()).hexdigest()[:16]}"


def build(folder: Path) -> Path:
    """Build a wheel in an empty folder.

    Raises:
        subprocess.CalledProcessError: it did not build; the compiler has said why.
    """
    # Its setup.py uninstalls MinkowskiEngine by whichever `pip` comes first, whatever it is asked for.
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "CFLAGS": f"{os.environ.get('CFLAGS', '')} {FLAGS}",
        "SETUPTOOLS_USE_DISTUTILS": "stdlib",
    }
    fetch = [*PIP, "download", "--require-hashes", "--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
    subprocess.run([*fetch, "-d", str(folder), "-r", str(REQUIREMENT)], check=True, env=environment)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        # Debian 12's Python 3.11.2 knows no filters yet; the archive is the one whose hash stands in REQUIREMENT.
        tar.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (source,) = (path for path in folder.iterdir() if path.is_dir())
    _join_sources(source)
    subprocess.run(
        [*PIP, "wheel", "--no-build-isolation", "--no-deps", "-w", str(folder / "wheel"), str(source)],
        check=True,
        env=environment,
    )
    (wheel,) = (folder / "wheel").glob("*.whl")
    return wheel


def _join_sources(source: Path) -> None:
    setup = source / "setup.py"
    text = setup.read_text()
    found = SOURCES.search(text)
    assert found, "the sdist is pinned by its hash, and has this list"
    names = re.findall(r'"([^"]+)"', found[2])
    (source / "src" / "all_cpu.cpp").write_text("".join(f'#include "{name}"\n' for name in names))
    setup.write_text(text[: found.start()] + f'{found[1]}["all_cpu.cpp"]' + text[found.end() :])


def install(wheel: Path) -> bool:
    """Whether it works then."""
    done = subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--force-reinstall", str(wheel)])
    return done.returncode == 0 and works()


def _compiler() -> list[str]:
    return [os.environ.get("CXX", "g++")]


def main() -> int:
    """0 if MinkowskiEngine imports in the end."""
    parser = argparse.ArgumentParser(description="Build MinkowskiEngine, or take it from the user's cache.")
    parser.add_argument("--imports", action="store_true", help="only say by the exit status whether it is there")
    if parser.parse_args().imports:
        return int(not works())
    kept = cache_folder()
    for wheel in kept.glob("*.whl"):
        if install(wheel):
            print(f"MinkowskiEngine comes from {kept}, where an earlier build left it")
            return 0
    print("Building MinkowskiEngine (one to two minutes on two cores) ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            wheel = build(Path(folder))
        except subprocess.CalledProcessError as error:
            print(f"exit status {error.returncode} of {' '.join(map(str, error.cmd))}", file=sys.stderr)
            return 1
        if not install(wheel):
            return 1
        try:
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copy(wheel, kept / "unfinished")
            (kept / "unfinished").replace(kept / wheel.name)
        except OSError as error:
            print(f"the wheel is not kept for the next time: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
