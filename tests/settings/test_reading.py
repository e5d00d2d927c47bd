"""What pydantic finds becomes one line of ours; nothing heavy is imported for it."""

import os
import subprocess
import sys

import pytest
from pydantic import BaseModel, Field, field_validator

from rllib_llm_async.engine import NO_REGISTRATION
from rllib_llm_async.settings.reading import STRICT, read_settings


class Wheel(BaseModel):
    model_config = STRICT

    size: float = Field(gt=0)
    spokes: int = Field(8, description="an even number")
    names: list[str] = []

    @field_validator("size")
    @classmethod
    def check_size(cls, size):
        if size > 100:
            raise ValueError("must fit the car")
        return size


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": 0}, "wheel.size: got 0, must be greater than 0"),
        ({"size": 200}, "wheel.size: got 200, must fit the car"),
        ({"size": 1, "spokes": "8"}, "wheel.spokes: got '8', must be an even number"),
        ({"size": 1, "names": ["a", 2]}, "wheel.names.1: got 2, must be a valid str"),
        ({"size": 1, "spoke": 8}, "wheel.spoke: unknown, did you mean 'spokes'?"),
        ({}, "wheel.size: missing"),
        ([], "wheel: got [], must be a mapping with size, spokes, names"),
    ],
)
def test_the_first_fault_is_one_line(settings, said):
    with pytest.raises(ValueError) as error:
        read_settings(Wheel, settings, "wheel")
    assert str(error.value).startswith(said)


def test_heavy_packages_are_not_imported():
    code = (
        "import sys; from rllib_llm_async.settings.check import check_value, check_key;"
        "check_value('engine', {'max_num_seqs': 8}); check_value('lora', {'r': 8});"
        "print([m for m in ('ray', 'torch', 'vllm', 'peft') if m in sys.modules])"
    )
    # Importing the package itself registers with Ray unless it is told not to.
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, NO_REGISTRATION: "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "[]"
