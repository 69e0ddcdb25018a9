"""Say in one line why an installation failed: `python explain.py LOG`, where LOG holds pip's or Python's complaints.

It always exits with 1. It needs nothing but Python.
"""

import re
import sys
from pathlib import Path

NETWORK = (
    "NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ConnectionResetError|RemoteDisconnected|"
    "Network is unreachable|Connection refused|Max retries exceeded"
)
REASONS = {  # the first pattern that a log has tells the reason; {} is its first group
    "CERTIFICATE_VERIFY_FAILED": "the package registry shows a certificate that Python does not know. Behind a proxy "
    "or virus scanner with its own, set PIP_CERT and REQUESTS_CA_BUNDLE to that certificate's file.",
    "407 Proxy Authentication": "the proxy wants a password. Set HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT",
    "ProxyError|Cannot connect to proxy": "the proxy cannot be reached. Correct or unset HTTPS_PROXY.",
    "No space left on device|Errno 28": "the disk is full. The packages need 3 GB.",
    NETWORK: "the package registry cannot be reached. Check the network; behind a proxy, set HTTPS_PROXY.",
    r"No matching distribution found for (\S+)": "no package registry that pip knows has {} for this Python and this "
    "system. See `.venv/bin/python -m pip config list` and PIP_NO_INDEX, PIP_INDEX_URL, PIP_FIND_LINKS.",
    "ResolutionImpossible|conflicting dependencies": "pip's settings ask for other versions than requirements.txt. "
    "See `.venv/bin/python -m pip config list`.",
    "DO NOT MATCH THE HASHES": "a package arrived damaged. Run the same command again.",
    r"(?:ModuleNotFoundError|ImportError): (.+)": "the packages are installed, but not as they should be: {}. "
    "See `.venv/bin/python -m pip config list`.",
}


def explain(log: str) -> str:
    """Return the reason, as a sentence, that the text of a log gives."""
    for pattern, reason in REASONS.items():
        if found := re.search(pattern, log):
            return reason.format(*found.groups())
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if lines:
        return lines[-1]
    return "Python ended without a word. TensorFlow needs a processor with AVX, and this may have none."


if __name__ == "__main__":
    sys.exit(f"Problem: {explain(Path(sys.argv[1]).read_text(encoding='utf-8', errors='replace'))}")
