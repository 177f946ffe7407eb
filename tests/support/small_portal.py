"""A supervisor over three small children, run as a process of its own: `small_portal.py PORT DIRECTORY`.

`web` answers /ready, `worker` has a child of its own, `scheduler` only waits. Each writes its process id into DIRECTORY.
"""

import signal
import sys
from pathlib import Path

from portal.worker.signals import Signals
from portal.worker.supervisor import Child, Supervisor
from tests.support.databases import settings_for

# Whole or not at all: somebody is waiting for it.
NOTE = (
    "import os, pathlib, sys; note = pathlib.Path(sys.argv[1]); part = note.with_suffix('.part'); "
    "part.write_text(str(os.getpid())); part.replace(note); "
)
WAIT = NOTE + "import signal; signal.pause()"
WEB = (
    NOTE
    + """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"ready": true}')
    def log_message(self, *_): pass
HTTPServer(("127.0.0.1", int(sys.argv[2])), Ready).serve_forever()
"""
)
PARENT = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[2], sys.argv[3]]); " + WAIT


def main(port: int, directory: Path) -> int:
    """Serve until a signal."""
    settings = settings_for(directory, portal_port=port)
    children = [
        Child("web", (sys.executable, "-c", WEB, str(directory / "web"), str(port))),
        Child("worker", (sys.executable, "-c", PARENT, str(directory / "worker"), WAIT, str(directory / "grandchild"))),
        Child("scheduler", (sys.executable, "-c", WAIT, str(directory / "scheduler"))),
    ]
    return Supervisor(settings, Signals(signal.SIGTERM, signal.SIGINT, signal.SIGCHLD), children).run()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))
