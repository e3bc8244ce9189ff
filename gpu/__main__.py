"""`python -m gpu COMMAND ...`: the same programs that the site's workers start.

    python -m gpu finetune RUN_DIR            fine-tune as RUN_DIR/config.json says; resumes from the last checkpoint found there
    python -m gpu generate GENERATION_DIR     make the sounds that GENERATION_DIR/config.json asks for
    python -m gpu inspect MODEL               what a model folder, a checkpoint or a file of weights is (JSON)
    python -m gpu convert SRC DST             bring a checkpoint in (.ckpt, hub:OWNER/NAME), or write one out (DST ending in .ckpt)
    python -m gpu pretrain RECIPE RUN_DIR     train a model from nothing

Exit codes: 0 finished, 3 stopped on request, 1 failed (the last event says why), 2 wrong arguments.
"""

from __future__ import annotations

import importlib
import os
import sys

COMMANDS = {
    "finetune": "gpu.finetune", "generate": "gpu.generate", "inspect": "gpu.models", "convert": "gpu.originals.command", "pretrain": "gpu.pretrain",
}  # fmt: skip


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        print(__doc__, file=sys.stderr)
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    # Threads wait briefly for each other and then sleep (docs/decisions/0007). Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Imported on demand: `--help` and the light half must not load torch.
    return importlib.import_module(COMMANDS[argv[0]]).main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
