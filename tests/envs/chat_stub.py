"""A chat-completions server on loopback, to be scripted by tests.

As a program it plays a user who gives up after some messages:

    python -m tests.envs.chat_stub --port 8123 --seconds 0.2
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import click

#: From the request's body to the message, or to a status, or to the raw body, or to
#: None: the connection is lost.
Answer = Callable[[dict[str, Any]], "dict[str, Any] | int | bytes | None"]


def say(content, **fields):
    """An answer that is the same whatever was asked."""
    return lambda body: {"role": "assistant", "content": content, **fields}


def completion(message, finish_reason="stop"):
    """What an endpoint says around a message."""
    return {
        "id": "c",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2},
    }


def say_cut_off(content, **fields):
    """The same, cut off at ``max_tokens``."""
    said = completion(say(content, **fields)(None), "length")
    return lambda body: json.dumps(said).encode()


class ChatStub(ThreadingHTTPServer):
    """Answers with ``answers`` one after the other, the last one for ever."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.answers: list[Answer] = [say("ok")]
        self.seconds = 0.0
        self.more_headers: dict[str, str] = {}
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.num_under_way = self.max_under_way = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that gave up waiting is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatStub

    def do_POST(self):
        stub = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with stub.lock:
            stub.requests.append(body)
            stub.headers.append({k.lower(): v for k, v in self.headers.items()})
            answer = stub.answers.pop(0) if len(stub.answers) > 1 else stub.answers[0]
            stub.num_under_way += 1
            stub.max_under_way = max(stub.max_under_way, stub.num_under_way)
        try:
            time.sleep(stub.seconds)
            said = answer(body)
        finally:
            with stub.lock:
                stub.num_under_way -= 1
        if said is None:
            self.close_connection = True
        elif isinstance(said, int):
            self._send(said, json.dumps({"error": {"message": "refused"}}).encode())
        elif isinstance(said, bytes):
            self._send(200, said)
        else:
            self._send(200, json.dumps(completion(said)).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in self.server.more_headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@click.command()
@click.option("--port", required=True, type=int)
@click.option("--seconds", default=0.0, help="Time that an answer takes.")
@click.option("--num-messages", default=4, help="What the user says until it stops.")
def main(port: int, seconds: float, num_messages: int) -> None:
    stub = ChatStub(port)
    stub.seconds = seconds

    def answer(body):
        said = sum(m["role"] == "assistant" for m in body["messages"])
        content = "please go on." if said < num_messages else "###STOP###"
        return {"role": "assistant", "content": content}

    stub.answers = [answer]
    threading.Event().wait()


if __name__ == "__main__":
    main()
