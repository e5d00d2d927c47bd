"""What a `WeightPublisher` asks of Ray and of a coordinator, in this process."""

from types import SimpleNamespace


class InPlace:
    """What `weight_publisher` asks of Ray: no store, no other process."""

    put = get = staticmethod(lambda value: value)
    is_initialized = staticmethod(lambda: True)

    @staticmethod
    def get_runtime_context():
        return SimpleNamespace(get_node_id=lambda: "here")


class Announced:
    """A coordinator in place: keeps what a `WeightPublisher` tells it."""

    def __init__(self):
        self.announced, self.taken, self.failures = [], [], []
        self.announce = SimpleNamespace(remote=self._announce)
        self.publish = SimpleNamespace(remote=self.taken.extend)
        self.fail = SimpleNamespace(remote=self.failures.append)
        self.interrupt = SimpleNamespace(remote=lambda version: [])
        self.share_scores = SimpleNamespace(remote=lambda *_: [])

    def _announce(self, version):
        self.announced.append(version)
        return len(self.announced)
