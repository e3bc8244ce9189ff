"""/api/v1: everything that the pages do, for programs. Only services and selectors are called; parameters come from gpu.config.

One module a subject, each with its `router`; `addresses.py` lists them. A new subject is a module with a `router` and one line there.
"""
