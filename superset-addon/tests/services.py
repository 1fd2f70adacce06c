"""What stands beside Superset in the field, run by an ordinary user from a folder.

Debian's packages and their configuration, but for folders and ports.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from conftest import END


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_until(happens: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + END
    while not happens():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Service:
    """A program with a configuration file, which listens on a port."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.configuration = folder / f"{name}.conf"
        self.log = folder / f"{name}.log"
        folder.mkdir(parents=True)

    def start(self, *command: str | Path) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log
            )
        wait_until(self._listens, f"{command[0]} does not start")

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(END)

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]


class PgBouncer(Service):
    """In transaction mode, on the way to the server of the tests."""

    def __init__(self, folder: Path, *settings: str) -> None:
        super().__init__(folder, "pgbouncer")
        users = folder / "userlist.txt"
        users.write_text('"superset" ""\n')
        lines = [
            "[databases]",
            f"* = host={os.environ['PGHOST']}",
            "[pgbouncer]",
            f"logfile = {self.log}",
            "listen_addr = localhost",
            f"listen_port = {self.port}",
            "unix_socket_dir =",
            "auth_type = trust",
            f"auth_file = {users}",
            "pool_mode = transaction",
            *settings,
        ]
        self.configuration.write_text("\n".join(lines) + "\n")
        self.start("/usr/sbin/pgbouncer", "-q", self.configuration)

    def uri(self, database: str = "superset") -> str:
        return f"postgresql+psycopg2://superset@127.0.0.1:{self.port}/{database}"


class Nginx(Service):
    """A reverse proxy that compresses, over TLS if it has a certificate."""

    def __init__(
        self,
        folder: Path,
        upstream: str,
        *settings: str,
        certificate: Path | None = None,
    ) -> None:
        super().__init__(folder, "nginx")
        tls = f"ssl_certificate {certificate}; ssl_certificate_key {certificate};"
        temporary = " ".join(
            f"{kind}_temp_path {folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        self.configuration.write_text(
            f"""
            daemon off;
            pid {folder}/pid;
            error_log {folder}/error.log;
            events {{ worker_connections 768; }}
            http {{
                {temporary}
                sendfile on;
                tcp_nopush on;
                include /etc/nginx/mime.types;
                default_type application/octet-stream;
                access_log {folder}/access.log;
                gzip on;
                gzip_proxied any;
                gzip_types application/json text/plain;
                server {{
                    listen 127.0.0.1:{self.port}{" ssl" if certificate else ""};
                    {tls if certificate else ""}
                    client_max_body_size 0;
                    location / {{
                        proxy_pass {upstream};
                        proxy_set_header Host $http_host;
                        {" ".join(settings)}
                    }}
                }}
            }}
            """
        )
        self.start("/usr/sbin/nginx", "-c", self.configuration, "-e", self.log)


class Apache(Service):
    """A reverse proxy that compresses."""

    MODULES = (
        "mpm_event",
        "authz_core",
        "proxy",
        "proxy_http",
        "filter",
        "deflate",
        "headers",
    )

    def __init__(self, folder: Path, upstream: str, *settings: str) -> None:
        super().__init__(folder, "apache2")
        lines = [
            f"ServerRoot {folder}",
            "ServerName localhost",
            f"Listen 127.0.0.1:{self.port}",
            f"PidFile {folder}/pid",
            f"ErrorLog {folder}/error.log",
            'LogFormat "%h %l %u %t \\"%r\\" %>s %O" common',
            *(
                f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so"
                for name in self.MODULES
            ),
            "AddOutputFilterByType DEFLATE application/json text/plain",
            "ProxyPreserveHost On",
            f"ProxyPass / {upstream}/",
            f"ProxyPassReverse / {upstream}/",
            *settings,
        ]
        self.configuration.write_text("\n".join(lines) + "\n")
        self.start("/usr/sbin/apache2", "-D", "FOREGROUND", "-f", self.configuration)


class RoundTrips:
    """A way to the server that counts how often a client waits for an answer."""

    def __init__(self, folder: Path, target: tuple[str, int] | str) -> None:
        self.target = target
        self.count = 0
        self.folder = folder
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{folder}/.s.PGSQL.5432")
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            kind = socket.AF_UNIX if isinstance(self.target, str) else socket.AF_INET
            server = socket.socket(kind)
            server.connect(self.target)
            threading.Thread(
                target=self._relay, args=(client, server), daemon=True
            ).start()

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        """Pass on what either side says; the client speaks anew: a round trip."""
        import select

        speaker = server
        while True:
            for source in select.select([client, server], [], [])[0]:
                data = source.recv(65536)
                if not data:
                    client.close()
                    server.close()
                    return
                if source is client and speaker is server:
                    self.count += 1
                speaker = source
                (server if source is client else client).sendall(data)

    def close(self) -> None:
        self._listener.close()


class RefusingOptions(RoundTrips):
    """A pooler that refuses some connections with options, in words of RDS Proxy's."""

    WORDS = (
        "Feature not supported: RDS Proxy currently doesn't support command-line"
        " options."
    )

    def __init__(self, folder: Path, target: str, refusals: int) -> None:
        self.refusals = refusals
        super().__init__(folder, target)

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        packet = client.recv(65536)
        if b"\0options\0" in packet and self.refusals:
            self.refusals -= 1
            said = f"SFATAL\0VFATAL\0C0A000\0M{self.WORDS}\0\0".encode()
            client.sendall(b"E" + struct.pack("!i", 4 + len(said)) + said)
            client.close()
            server.close()
        else:
            server.sendall(packet)
            super()._relay(client, server)
