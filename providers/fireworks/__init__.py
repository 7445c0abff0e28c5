"""Fireworks AI: ``compile`` plans, ``records`` converts rows."""
