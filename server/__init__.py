"""The server: live chat over a WebSocket, its HTTP side, and the database that keeps every word."""
