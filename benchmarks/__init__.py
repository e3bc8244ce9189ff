import os

# As manage.py and gpu.__main__ set it, before torch is imported: what is measured is what runs.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
