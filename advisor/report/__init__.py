"""The decision report: ``build_report`` makes the JSON that is the source of truth, HTML and Markdown render from it."""
