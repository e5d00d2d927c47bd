"""Weights on their way from a learner to the engines of all nodes.

A learner writes each version once, as a file in its node's shared memory (`Outbox`).
The engines of that node read this file; on every other node the first runner that
needs it brings the whole, or only what has changed, into one copy that all engines of
the node read (`NodeWeights`). No version is ever visible by half.

That is the transport `shared_file`. `DeviceOutbox` and `DeviceWeights` are the same two
sides for vLLM's own ways from GPU to GPU; `choice` picks.
"""
