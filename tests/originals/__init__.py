"""Parity with the original code: checkpoints that it wrote, numbers that it computed, exports that it reads back.

`packages.txt` is installed into `.venv/originals` by `make test`, beside the project's environment and never on its path. Only the
child process of `writer.py` imports from there; `fixtures.py` starts it and asks it for files and numbers.
"""
