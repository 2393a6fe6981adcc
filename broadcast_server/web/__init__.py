"""The server-rendered console; empty until its issue, its layer is reserved."""
