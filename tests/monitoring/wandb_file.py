"""Reads what W&B wrote offline."""

import json

from wandb.proto import wandb_internal_pb2


def read_run(path):
    """The run record, history rows and defined metrics by name of a ``.wandb`` file."""
    run, history, defined = None, [], {}
    for record in read_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            history.append(
                {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
            )
        elif kind == "metric":
            defined[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "run":
            run = record.run
    return run, history, defined


def read_records(path):
    """W&B's file: 7 bytes, then blocks of 32 KiB in LevelDB's log framing."""
    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:  # a header never straddles two blocks
            position += room
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]
        position += 7
        parts += data[position : position + length]
        position += length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
