"""Checkpoints in the layouts of the original code: read, recognised, brought in, and written out again.

pickles    what a torch file's pickle says, read without running anything
tensors    one reader for torch files and safetensors: names, shapes, values on the disk
layouts    which of the original models a file is, from its names and shapes alone
names      the same weight's name there and here
convert    a file, a folder or a repository becomes a model folder
export     a model folder, with what a run has trained on top, becomes a file for another tool
hub        downloads of `hub:OWNER/NAME`
command    `python -m gpu convert`

The first four need no torch. Nothing here ever unpickles: a checkpoint from elsewhere can hold any program.
"""
