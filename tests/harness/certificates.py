"""Make certificates that nobody vouches for, with the openssl command."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.requirements import require_or_skip


@dataclass(frozen=True)
class Certificate:
    """The PEM files of a certificate and of its key, and one with both, as haproxy wants them."""

    public: Path
    private: Path
    both: Path


def make_certificate(directory: Path, *names: str) -> Certificate:
    """Make one for these names, written as openssl does: `DNS:chat.example.org`, `IP:127.0.0.1`.

    Skips where openssl is missing. Raises: subprocess.CalledProcessError.
    """
    openssl = shutil.which("openssl")
    require_or_skip("openssl (apt-get install openssl)", openssl is not None)
    made = Certificate(directory / "public.pem", directory / "private.pem", directory / "both.pem")
    command = [str(openssl), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=chatwait tests", "-addext", f"subjectAltName={','.join(names)}"]
    command += ["-out", str(made.public), "-keyout", str(made.private)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    made.both.write_bytes(made.public.read_bytes() + made.private.read_bytes())
    return made
