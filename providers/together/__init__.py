"""Together AI: ``compile`` plans, ``records`` converts rows."""
