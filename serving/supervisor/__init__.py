"""The parent process: gateway processes, HTTP process, Triton."""
