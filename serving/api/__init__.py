"""Routes: requests by NIM's, OpenAI's, Cohere's and TEI's names to a task and back, errors, documents of the API.

Framing belongs in `http`, the task itself in `tasks`.
"""
