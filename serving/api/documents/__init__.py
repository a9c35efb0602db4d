"""The API described: OpenAPI for programs, one page for people, and the JSON Schema of every form.

What a route does belongs in `api.routes`; here nothing is answered but documents.
"""
