"""A certificate authority made for one test, and what it issued."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import trustme


@dataclass(frozen=True)
class Certificates:
    """Files. The server's certificate is for this machine."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path

    @property
    def query(self) -> str:
        """The client's part of a URL of RabbitMQ."""
        files = {"cafile": self.ca, "certfile": self.client, "keyfile": self.client_key}
        return urlencode({name: str(file) for name, file in files.items()})


def write_certificates(folder: Path) -> Certificates:
    """Make an authority, a server's and a client's certificate."""
    folder.mkdir(exist_ok=True)
    authority = trustme.CA()
    server, client = authority.issue_cert("localhost", "127.0.0.1"), authority.issue_cert("client")
    files = Certificates(
        ca=folder / "ca.pem",
        server=folder / "server.pem",
        server_key=folder / "server.key",
        client=folder / "client.pem",
        client_key=folder / "client.key",
    )
    authority.cert_pem.write_to_path(str(files.ca))
    server.cert_chain_pems[0].write_to_path(str(files.server))
    server.private_key_pem.write_to_path(str(files.server_key))
    client.cert_chain_pems[0].write_to_path(str(files.client))
    client.private_key_pem.write_to_path(str(files.client_key))
    return files
