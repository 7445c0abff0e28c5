"""Dated facts as YAML: base models (models.yaml), prices (prices.yaml) and how providers bill and how fast they are (providers.yaml).

Every entry names a source, the day it was observed and a grade; ``tuneport.core.sources`` says what the grades mean.
"""
