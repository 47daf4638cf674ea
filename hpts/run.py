"""`make run`: the whole product on this machine, in the foreground, as one tree of processes that ends together.

    python -m hpts.run        servers, roles, migrations, demo tenant, API, worker, beat, deliverer
    python -m hpts.run api    the web server alone, in this process (containers)

It supervises: what dies is started again. Every child asks the kernel for a signal when this process dies, so that even
SIGKILL leaves nothing running. Knows nothing about loans; the demo tenant is the work of `manage.py seed_demo`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.markup import escape

from hpts import embedded

START_SECONDS = 60.0
STOP_SECONDS = 6.0
# The pause before a child is started again grows from the first to the second; after a steady life it is short again.
PAUSE_SECONDS = (0.1, 10.0)
STEADY_SECONDS = 30.0

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

console = Console(highlight=False)


class CannotRun(Exception):
    """What the person at the terminal must change first."""


# --- Commands --------------------------------------------------------------------------------------------------------


def server_command(*binds: str) -> list[str]:
    """The web server. `binds` are what it listens on: `host:port`, or `fd://n` for a socket that is already open."""
    command = [sys.executable, "-m", "gunicorn", "hpts.wsgi", "--worker-class", "gthread"]
    command += ["--workers", os.environ.get("HPTS_WEB_WORKERS", "2")]
    command += ["--threads", os.environ.get("HPTS_WEB_THREADS", "8")]
    # A header with an underscore would pass for one with a dash: it is dropped.
    command += ["--header-map", "drop"]
    # A line may be as long as a header: filters and a page token fit into it.
    command += ["--limit-request-line", "8190", "--limit-request-fields", "100", "--limit-request-field_size", "8190"]
    command += ["--graceful-timeout", "5", "--log-level", "warning", "--no-control-socket"]
    return command + [part for bind in binds for part in ("--bind", bind)]


def worker_command() -> list[str]:
    # Threads, because the tasks wait for the database and the network, and no grandchildren can be left behind.
    command = [sys.executable, "-m", "celery", "--app", "hpts", "worker", "--pool", "threads", "--concurrency", "4"]
    return [*command, "--without-gossip", "--without-mingle", "--loglevel", "info"]


def beat_command(schedule: Path) -> list[str]:
    command = [sys.executable, "-m", "celery", "--app", "hpts", "beat", "--loglevel", "info"]
    return [*command, "--schedule", str(schedule), "--pidfile", ""]


def deliverer_command() -> list[str]:
    return [sys.executable, "manage.py", "deliver_webhooks"]


# --- The port --------------------------------------------------------------------------------------------------------


def listen(host: str, port: int) -> list[socket.socket]:
    """Open the listening sockets: the given host, or both loopback addresses. They outlive the web server, so a client
    that comes while it is started again waits and is served."""
    sockets = []
    for address in [host] if host else ["127.0.0.1", "::1"]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            listener = socket.socket(family)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address, port))
            listener.listen(2048)
        except OSError as error:
            if address == "::1" and error.errno != errno.EADDRINUSE:
                continue  # This machine has no IPv6.
            if error.errno == errno.EADDRINUSE:
                raise CannotRun(
                    f"Port {port} is taken by another program. Choose another: make run PORT={port + 1}"
                ) from None
            raise CannotRun(f"Cannot listen on {address}, port {port}: {error.strerror}.") from None
        sockets.append(listener)
    return sockets


# --- Servers that somebody else runs ---------------------------------------------------------------------------------


def given_database(state: Path, url: str) -> dict[str, str]:
    """The three database variables for a DATABASE_URL of the user.

    A role that may create roles is used to make ours, once and for all runs; any other role is the application's own,
    and then migrations need HPTS_OWNER_DATABASE_URL.
    """
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            row = connection.execute(
                "SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"
            ).fetchone()
        if row == (True,):
            passwords = embedded.role_passwords(state)
            embedded.make_roles(url, passwords)
            parts = urllib.parse.urlsplit(url)
            address = parts.netloc.rpartition("@")[2]
            return embedded.role_variables(
                lambda role, password: parts._replace(netloc=f"{role}:{password}@{address}").geturl(), passwords
            )
    except psycopg.Error as error:
        raise CannotRun(f"DATABASE_URL does not work: {str(error).strip()}") from None
    if "HPTS_OWNER_DATABASE_URL" not in os.environ:
        raise CannotRun(
            "The role of DATABASE_URL may not create roles, so the migrations need a second one. Set "
            "HPTS_OWNER_DATABASE_URL to the owner of the database, or DATABASE_URL to a superuser."
        )
    return {name: value for name, value in os.environ.items() if name.endswith("DATABASE_URL")}


# --- Children --------------------------------------------------------------------------------------------------------


@dataclass
class Child:
    """One supervised process. It has a process group of its own, so that Ctrl-C reaches it only through us."""

    name: str
    argv: list[str]
    death_signal: int
    log: Path | None = None
    variables: dict[str, str] = field(default_factory=dict)
    descriptors: list[int] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_after: float = 0.0
    pause: float = PAUSE_SECONDS[0]

    def start(self, variables: dict[str, str]) -> None:
        options: dict[str, Any] = {"env": variables | self.variables, "cwd": embedded.ROOT, "process_group": 0}
        with contextlib.ExitStack() as stack:
            if self.log is not None:
                options["stdout"] = options["stderr"] = stack.enter_context(embedded.open_log(self.log))
            self.process = embedded.spawn(
                self.argv, death_signal=self.death_signal, pass_fds=self.descriptors, **options
            )
        self.started_at = time.monotonic()

    def watch(self, variables: dict[str, str]) -> None:
        """Start the process again when it has died, after a pause that grows while it dies again and again."""
        now = time.monotonic()
        if self.process is not None and self.process.poll() is not None:
            where = f"; see {self.log}" if self.log else ""
            self.kill()
            if now - self.started_at > STEADY_SECONDS:
                self.pause = PAUSE_SECONDS[0]
            console.print(f"[yellow]{self.name} ended ({_ending(self.process)}) and starts again{where}[/]")
            self.start_after = now + self.pause
            self.pause = min(self.pause * 2, PAUSE_SECONDS[1])
            self.process = None
        if self.process is None and now >= self.start_after:
            self.start(variables)

    def kill(self) -> None:
        """Kill what is left of the group: the workers of a web server that died."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _ending(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return f"signal {-code}" if code < 0 else f"exit {code}"


def stop(children: list[Child]) -> None:
    """Ask all in order, wait for all together, kill what stays."""
    deadline = time.monotonic() + STOP_SECONDS
    processes = [child.process for child in children if child.process is not None]
    for process in processes:
        process.terminate()
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0.0))
    for child in children:
        child.kill()


# --- The supervisor --------------------------------------------------------------------------------------------------


class Supervisor:
    """One `make run`."""

    def __init__(self, port: int, host: str) -> None:
        self.port = port
        self.host = host
        self.state = embedded.state_directory()
        self.origin = f"http://localhost:{port}"
        self.demo_path = self.state / "demo.json"
        self.attachments: list[embedded.Attachment] = []
        self.variables: dict[str, str] = {}
        self.children: list[Child] = []
        # What seed_demo printed lives beside the database that it is true of.
        self.remembered = self.state / "postgres" / "demo.json"

    def run(self) -> None:
        """Come up and stay up; ends only by an exception, KeyboardInterrupt when asked to stop."""
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(listener) for listener in listen(self.host, self.port)]
            self.demo_path.unlink(missing_ok=True)
            with console.status("Starting PostgreSQL and Redis"):
                self._find_servers(stack)
            with embedded.locked(self.state / "prepare.lock"):
                with console.status("Migrating the database"):
                    self._manage("migrate", "--database", "owner", "--verbosity", "0")
                if not self.remembered.exists():
                    self._seed()
            self.children = self._children(sockets)
            stack.callback(stop, self.children)
            self.children[0].start(self.variables)
            with console.status("Starting the API"):
                self._wait_until_live()
            # The watch starts the others; the API had the processors to itself until now.
            self._watch()
            self._announce(self._demo())
            while True:
                time.sleep(0.1)
                self._watch()

    def _find_servers(self, stack: contextlib.ExitStack) -> None:
        """Attach to the embedded servers, or take those that the user names, and tell `manage.py` about the latter."""
        given: dict[str, str] = {}
        if url := os.environ.get("DATABASE_URL"):
            given |= given_database(self.state, url)
            digest = hashlib.sha256(url.encode()).hexdigest()[:16]
            self.remembered = self.state / "given" / f"demo-{digest}.json"
        if url := os.environ.get("REDIS_URL"):
            given["REDIS_URL"] = url
        if given:
            page = stack.enter_context(embedded.publication(self.state / "given" / "keeper.json"))
            page(given)
        for kind, name in (("postgres", "DATABASE_URL"), ("redis", "REDIS_URL")):
            if name not in given:
                attachment = embedded.Attachment(kind, self.state)
                stack.callback(attachment.release)
                self.attachments.append(attachment)
        own = embedded.application_secrets(self.state)
        served = [attachment.variables for attachment in self.attachments]
        # Receivers of webhooks are tried out on this machine.
        own["WEBHOOK_ALLOW_PRIVATE_TARGETS"] = "1"
        # What the processes have counted is of this run.
        counted = self.state / f"metrics-{self.port}"
        shutil.rmtree(counted, ignore_errors=True)
        counted.mkdir(parents=True)
        own["PROMETHEUS_MULTIPROC_DIR"] = str(counted)
        self.variables = own | os.environ | given | {"PORT": str(self.port)}
        for variables in served:
            self.variables |= variables

    def _children(self, sockets: list[socket.socket]) -> list[Child]:
        logs = self.state / "log"
        api_log = logs / "api.log"
        embedded.open_log(api_log).close()
        descriptors = [listener.fileno() for listener in sockets]
        binds = [f"fd://{descriptor}" for descriptor in descriptors]
        # Two runs of one checkout must not write one schedule.
        schedule = self.state / f"beat-{self.port}.db"
        # When this process is killed, SIGQUIT ends the web server and the worker at once, without waiting for work; the
        # deliverer has nothing to tidy up.
        return [
            Child(
                "The API",
                server_command(*binds),
                signal.SIGQUIT,
                # A line per request would push the announcement off the terminal.
                variables={"HPTS_LOG_FILE": str(api_log)},
                descriptors=descriptors,
            ),
            Child("The worker", worker_command(), signal.SIGQUIT, log=logs / "worker.log"),
            Child("Beat", beat_command(schedule), signal.SIGTERM, log=logs / "beat.log"),
            Child("The deliverer", deliverer_command(), signal.SIGKILL, log=logs / "deliverer.log"),
        ]

    def _manage(self, *arguments: str) -> str:
        """Run `manage.py` and return what it prints."""
        process = embedded.spawn(
            [sys.executable, "manage.py", *arguments],
            death_signal=signal.SIGTERM,
            cwd=embedded.ROOT,
            env=self.variables,
            stdout=subprocess.PIPE,
        )
        try:
            output = process.communicate()[0].decode()
        finally:
            embedded.stop(process, (signal.SIGTERM, 2.0))
        if process.returncode != 0:
            raise CannotRun(f"manage.py {arguments[0]} failed ({_ending(process)}).\n{output}".strip())
        return output

    def _seed(self) -> dict[str, str]:
        """Make the demo tenant and its book. The secret is printed once, so it is remembered here."""
        loans = ("--loans", os.environ["HPTS_DEMO_LOANS"]) if "HPTS_DEMO_LOANS" in os.environ else ()
        console.print("Making the demo book, once for this database ...")
        seeded: dict[str, str] = json.loads(self._manage("seed_demo", "--json", *loans))
        embedded.write_private(self.remembered, json.dumps(seeded, indent=2))
        return seeded

    def _demo(self) -> dict[str, str]:
        """What the person needs to call the API; seeds again when the remembered client is unknown to the database."""
        seeded: dict[str, str] = json.loads(self.remembered.read_text())
        if not self._token_works(seeded):
            with embedded.locked(self.state / "prepare.lock"):
                seeded = self._seed()
        addresses = {"base_url": "/v1", "token_url": "/oauth2/token", "admin_url": "/admin/"}
        demo = {name: self.origin + path for name, path in addresses.items()} | seeded
        embedded.write_private(self.demo_path, json.dumps(demo, indent=2) + "\n")
        return demo

    def _wait_until_live(self) -> None:
        api = self.children[0]
        deadline = time.monotonic() + START_SECONDS
        while _status(self._request("/v1/health/live")) != 200:
            if api.process is not None and api.process.poll() is not None:
                raise CannotRun(f"The API ended while it started ({_ending(api.process)}); it says above why.")
            if time.monotonic() > deadline:
                raise CannotRun(f"The API does not answer at {self.origin}/v1/health/live.")
            time.sleep(0.05)

    def _token_works(self, seeded: dict[str, str]) -> bool:
        form = {"grant_type": "client_credentials"} | {name: seeded[name] for name in ("client_id", "client_secret")}
        return _status(self._request("/oauth2/token", urllib.parse.urlencode(form).encode())) == 200

    def _request(self, path: str, body: bytes | None = None) -> urllib.request.Request:
        host = self.host if self.host not in ("", "0.0.0.0", "::") else "127.0.0.1"
        host = f"[{host}]" if ":" in host else host
        return urllib.request.Request(f"http://{host}:{self.port}{path}", body, {"Host": f"localhost:{self.port}"})

    def _watch(self) -> None:
        for attachment in self.attachments:
            if not attachment.alive():
                console.print(f"[yellow]The keeper of {attachment.kind} ended and starts again[/]")
                before = attachment.variables
                if attachment.ensure() != before:
                    # Another port: the children learn it by being started again.
                    self.variables |= attachment.variables
                    stop(self.children)
        for child in self.children:
            child.watch(self.variables)

    def _announce(self, demo: dict[str, str]) -> None:
        lines = {
            "API": demo["base_url"],
            "Docs": f"{self.origin}/v1/docs",
            "Admin": demo["admin_url"],
            "  login": f"{demo['admin_username']} / {demo['admin_password']}",
            "Token": demo["token_url"],
            "  client id": demo["client_id"],
            "  client secret": demo["client_secret"],
            "Tenant": demo["tenant_id"],
            "Program": demo["program_id"],
        }
        console.rule("[bold green]HPTS is ready", align="left", style="green")
        for label, value in lines.items():
            # Never wrapped, because people copy these.
            console.print(f"[dim]{label:<17}[/][bold]{escape(value)}[/]", soft_wrap=True)
        console.rule(style="green")
        console.print(f"The same as JSON: {self.demo_path}\nLogs: {self.state / 'log'}", soft_wrap=True)
        console.print("Ctrl-C stops everything.")


def _status(request: urllib.request.Request) -> int:
    """The HTTP status of a request to the own API; 0 when there is no answer."""
    # Without the proxies of the environment, which may not know this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _port() -> int:
    text = os.environ.get("PORT") or "3000"
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise CannotRun(f"PORT must be a number from 1 to 65535, not {text!r}.")
    return int(text)


def _interrupt(*_: object) -> None:
    """Begin to stop; from here on nothing interrupts the stopping."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    try:
        if arguments == ["api"]:
            command = server_command(f"{os.environ.get('HPTS_HOST') or '127.0.0.1'}:{_port()}")
            os.execv(command[0], command)
        if "--with-parent" in arguments:
            embedded.end_with_parent()
        for number in STOP_SIGNALS:
            signal.signal(number, _interrupt)
        Supervisor(_port(), os.environ.get("HPTS_HOST", "")).run()
    except (CannotRun, embedded.EmbeddedError, PermissionError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
