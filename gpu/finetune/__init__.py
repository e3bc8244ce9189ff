"""`python -m gpu finetune RUN_DIR`: trains the UNet of a model, or a LoRA on it, on captioned sounds.

run          the whole course, from `config.json` to the last event: read this first
data         clips to cached latents, captions to cached embeddings, and what each step trains on
module       one training step (a LightningModule)
schedule     the learning rate of each step
checkpoints  what a run saves, how it is verified and read back, what retention removes
validation   the fixed-noise loss and the sounds for fixed prompts
callbacks    what happens between steps: saying, validating, saving, obeying
control      requests from outside: files, signals, a lost parent
"""

from gpu.finetune.run import main

__all__ = ["main"]
