"""Models behind an OpenAI-compatible HTTP server: teachers, rewriters and judges. Imports neither torch nor an HTTP library until it is used."""
