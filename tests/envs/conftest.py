"""A chat endpoint on loopback."""

import pytest

from tests.envs.chat_stub import ChatStub


@pytest.fixture
def chat_stub():
    stub = ChatStub()
    yield stub
    stub.shutdown()
    stub.server_close()
