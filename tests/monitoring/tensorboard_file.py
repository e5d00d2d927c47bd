"""Reads what was written for TensorBoard."""

import struct

from tensorboardX.proto import event_pb2


def read_values(path):
    """Every summary value of an events file, as (step, value) (TFRecord framing)."""
    data, position = path.read_bytes(), 0
    while position < len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        event = event_pb2.Event()
        event.ParseFromString(data[position + 12 : position + 12 + length])
        yield from ((event.step, value) for value in event.summary.value)
        position += 12 + length + 4  # length and its checksum; the data's checksum


def read_scalars(path):
    """By tag, the values of the scalars in the order of their steps."""
    scalars = {}
    for _, value in read_values(path):
        if value.WhichOneof("value") == "simple_value":
            scalars.setdefault(value.tag, []).append(value.simple_value)
    return scalars
