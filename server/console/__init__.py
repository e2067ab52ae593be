"""The operators' console: its HTTP API under `/api/operator`, and what is behind it.

    routes (one module a subject) ──▶ desk modules (plain calls, any thread) ──▶ the database
                 │
                 └──▶ server.conversations, the engine (event loop)

Routes are thin: who may, what was asked, what comes back. `console.api` puts them together; whoever is signed
in is found out by `console.sign_in`.
"""
