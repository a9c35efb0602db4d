"""What is published, as values: the release document and the OCI artifact that holds a model's files.

Sending it belongs in `publish`, reading it back in `inspect`.
"""
