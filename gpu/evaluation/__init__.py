"""How good are the sounds of a model: figures with their uncertainty, bad audio, copies of training sounds.

Light (no torch): `metrics` (distances between sets of embeddings), `statistics` (intervals of counts), `report` (what an evaluation found)
and `loudness` (bringing a pair to one level). With torch: `ears` (a CLAP that hears and reads) and `run` (making and judging the sounds).
"""
