"""Training and sampling of AudioLDM models: a program (`python -m gpu`), not a library of the site.

The light half (config, events, errors, manifest, models, sound) imports neither torch nor Django, and is all that the site may import.
"""
