"""nginx with the two doors of deploy/nginx in front of `make run`, in the foreground: `make partner-host`.

Fills in the same template as docker-compose.yml. Needs the program `nginx` (1.22 or newer) and the certificates of
`make partner-certs`. Public host on port 3443, partner host on 3444 (HPTS_PUBLIC_TLS_PORT, HPTS_PARTNER_TLS_PORT).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy import partner_certs
from hpts import embedded

TEMPLATE = embedded.ROOT / "deploy" / "nginx" / "hpts.conf.template"
MAIN = """# Written by `make partner-host`.
{user}
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/hpts.conf;
}}
"""
MISSING = "nginx is not installed. On Debian and Ubuntu: apt-get install nginx; on macOS: brew install nginx."


def program() -> str:
    """Where nginx is; /usr/sbin is not on everybody's PATH. Raises FileNotFoundError."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin")
    if found is None:
        raise FileNotFoundError(MISSING)
    return found


def write(directory: Path, variables: Mapping[str, str]) -> list[str]:
    """Write the configuration with these variables; gives the command that runs it in the foreground."""
    directory.mkdir(parents=True, exist_ok=True)
    known = {"HPTS_NGINX_DIRECTORY": str(TEMPLATE.parent), **variables}
    text = re.sub(r"\$\{(HPTS_\w+)\}", lambda match: known[match[1]], TEMPLATE.read_text())
    embedded.write_private(directory / "hpts.conf", text)
    # Temporary files lie below the state directory, which only its owner may enter.
    user = "user root;" if os.geteuid() == 0 else ""
    (directory / "nginx.conf").write_text(MAIN.format(directory=directory, user=user))
    return [program(), "-p", str(directory), "-c", str(directory / "nginx.conf"), "-e", "stderr", "-g", "daemon off;"]


def main() -> None:
    state = embedded.state_directory()
    certificates = partner_certs.directory()
    if not (certificates / "server.crt").exists():
        sys.exit("There are no certificates yet: make partner-certs")
    ports = {name: os.environ.get(name, default) for name, default in PORTS.items()}
    variables = {
        "HPTS_UPSTREAM": f"127.0.0.1:{os.environ.get('PORT', '3000')}",
        "HPTS_PROXY_SECRET": embedded.application_secrets(state)["HPTS_PROXY_SECRET"],
        "HPTS_TLS_DIRECTORY": str(certificates),
        "HPTS_PUBLIC_NAME": os.environ.get("HPTS_PUBLIC_NAME", "localhost"),
        "HPTS_PARTNER_NAME": os.environ.get("HPTS_PARTNER_NAME", "localhost"),
    }
    try:
        command = write(state / "nginx", variables | ports)
    except FileNotFoundError as error:
        sys.exit(str(error))
    public, partner = ports.values()
    print(
        f"Public host https://localhost:{public}, partner host https://localhost:{partner}; Ctrl-C stops both.",
        flush=True,
    )
    os.execv(command[0], command)


PORTS = {"HPTS_PUBLIC_TLS_PORT": "3443", "HPTS_PARTNER_TLS_PORT": "3444"}


if __name__ == "__main__":
    main()
