"""A server before another one (or before a folder), which fails as networks do."""

from __future__ import annotations

import http.client
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP = {"connection", "transfer-encoding", "content-length", "server", "date", "host"}


class Faulty:
    """Forwards to ``port`` of this machine. ``faults``: end of a path -> what happens to its next requests, one after the other:
    "503", "cut" (half of the body, then the end), "stall" (half of it, then nothing), "slow" (in small parts), "".
    """

    def __init__(self, port: int) -> None:
        self.faults: dict[tuple[str, str], list[str]] = {}
        self.seen: list[tuple[str, str]] = []
        self.counts: dict[tuple[str, str], int] = defaultdict(int)
        """Method, path -> requests."""
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                path = self.path.partition("?")[0]
                with outer._lock:
                    outer.seen.append((self.command, path))
                    outer.counts[self.command, path] += 1
                    waiting = next(
                        (w for (m, end), w in outer.faults.items() if m == self.command and path.endswith(end)), []
                    )
                    fault = waiting.pop(0) if waiting else ""
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if fault == "503":
                    self.send_response(503)
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return
                forward = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
                forward.request(self.command, self.path, body, dict(self.headers))
                found = forward.getresponse()
                data = found.read()
                self.send_response(found.status)
                for name, value in found.getheaders():
                    if name.lower() not in HOP:
                        self.send_header(name, value)
                length = found.getheader("content-length") if self.command == "HEAD" else str(len(data))
                self.send_header("content-length", length or "0")
                self.end_headers()
                forward.close()
                try:
                    self.send(data, fault)
                except OSError:  # the other side has hung up
                    self.close_connection = True

            def send(self, data: bytes, fault: str) -> None:
                if fault in ("cut", "stall"):
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    time.sleep(3 * (fault == "stall"))
                    self.close_connection = True
                elif fault == "slow":
                    for start in range(0, len(data), 256):
                        self.wfile.write(data[start : start + 256])
                        time.sleep(0.02)
                else:
                    self.wfile.write(data)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def fail(self, method: str, end: str, *faults: str) -> None:
        self.faults[method, end] = list(faults)

    def count(self, method: str, end: str) -> int:
        return sum(n for (m, path), n in self.counts.items() if m == method and path.endswith(end))

    def reset(self) -> None:
        self.faults.clear()
        self.seen.clear()
        self.counts.clear()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
