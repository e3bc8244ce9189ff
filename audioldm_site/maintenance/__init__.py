"""Keeping a studio for years: back up, restore, check what is stored, clear what nobody needs, and say how it is."""
