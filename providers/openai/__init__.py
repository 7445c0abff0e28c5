"""OpenAI, and services that speak its fine-tuning protocol: ``compile`` plans, ``records`` converts rows, ``client`` talks."""
