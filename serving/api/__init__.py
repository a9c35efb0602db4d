"""The HTTP API by NIM's, OpenAI's, Cohere's and TEI's names: the application, its limits, errors and management routes.

What a task answers is in `routes`, what describes it in `documents`. Framing belongs in `http`.
"""
