"""Ask the service of this container whether it lives, or what the path given asks, such as /ready; exit with 0 or 1.

It reads the service's own settings: the port, and a host name that ALLOWED_HOSTS lets in. Standard library only.
"""

from __future__ import annotations

import http.client
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.settings import BadSettings, Settings, read_settings

TIMEOUT_SECONDS = 4.0  # below the one of the Dockerfile's HEALTHCHECK, so that this says what was wrong
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def status_of(path: str, settings: Settings) -> int:
    """Return the status of a GET. Raises: OSError, http.client.HTTPException."""
    address = settings.host.strip("[]")
    # http.client and not urllib: a proxy named in the environment is not the way to ourselves.
    connection = http.client.HTTPConnection(ANY_ADDRESS.get(address, address), settings.port, timeout=TIMEOUT_SECONDS)
    try:
        headers = {"Host": settings.allowed_hosts[0], "Connection": "close"}
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def main(path: str = "/health") -> int:
    try:
        status = status_of(path, read_settings())
    except (BadSettings, OSError, http.client.HTTPException) as error:
        print(f"no answer: {error}", file=sys.stderr)
        return 1
    print(f"GET {path}: {status}")
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
