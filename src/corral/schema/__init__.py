"""Public request and response types, shared by server and SDK. Times are RFC 3339 UTC, durations seconds, memory and disk MiB, file sizes bytes, cpu cores."""
