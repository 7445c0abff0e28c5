"""Together AI: ``compile`` plans, ``records`` converts rows, ``client`` talks to the service through its SDK."""
