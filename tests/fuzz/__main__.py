"""Coverage-guided fuzzing: ``python -m tests.fuzz TARGET FOLDER [libFuzzer options]``.

`make fuzz` runs every target for FUZZ_SECONDS; FOLDER keeps what reached new code, for
the next time. A finding ends the run, and its input
is kept in the folder that ``-artifact_prefix`` names; copy it to
``tests/fuzz/corpus/TARGET`` once it is fixed, where `tests/fuzz/test_corpus.py` tries
it for ever after.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import atheris

# Atheris has imported them already, without what counts coverage.
for module in ("json", "json.decoder", "json.scanner", "json.encoder", "pickle"):
    sys.modules.pop(module, None)

with atheris.instrument_imports(
    include=[
        "rllib_llm_async",
        "yaml",
        "json",
        "pickle",
        "vllm.tool_parsers",
        "vllm.reasoning",
    ]
):
    from tests.fuzz.targets import TARGETS

    # vLLM's parsers are imported by the first turns.
    target = TARGETS[sys.argv[1]]()
    for seed in target.seeds:
        target.run(seed)


def main() -> None:
    name, folder, *options = sys.argv[1:]
    # A parser of vLLM's says each of its failures in full.
    logging.disable(logging.CRITICAL)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        Path(folder, f"seed_{number}").write_bytes(seed)
    dictionary = Path(__file__).with_name(f"{name}.dict")
    if dictionary.is_file():
        options.append(f"-dict={dictionary}")
    atheris.Setup([sys.argv[0], *options, folder], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
