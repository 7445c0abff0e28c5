"""Rows: reading, normal form, splitting, token counts and facts about a dataset."""
