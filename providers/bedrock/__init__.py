"""Amazon Bedrock: ``compile`` plans, ``families`` says how base-model families differ, ``records`` converts rows."""
