"""Amazon Bedrock: ``compile`` plans, ``client`` submits and reads, ``doctor`` says what is missing. See docs/bedrock.md.

    families, hyperparameters, records    how base-model families differ; the settings of a run; rows as records
    aws, errors, states                   boto3's sessions; AWS's errors and answers in portable words
    storage, models, converse             S3; lifecycles and deployments; chat
"""
